"""What readers of documents leave in a text, fixed by counts over the folder: split words, ligatures, running lines.

Code fences, indented code and tables stay as they are. A form feed marks where a page begins.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any

LIGATURES = ("ffi", "ffl", "ff", "fi", "fl")
WIDE = 40  # shorter lines are not wrapped text but verses, names or cells (our choice)
EDGE, AROUND, FEWEST_PAGES = 3, 4, 4  # running lines: lines at an edge, pages before and after, and pages at least

_SIGNS: dict[int, Any] = str.maketrans(dict(zip("ﬀﬁﬂﬃﬄﬅﬆ", ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True)))
_SIGNS |= dict.fromkeys({*range(32), 127, 0xFFFD} - {*b"\t\n\f"}, "\ue000")
_SIGNS |= str.maketrans("\xa0\u2007\u202f\x0b\x85\u2028\u2029\uf0a7\uf0b7", " " * 7 + "••")  # • as Word has it
_SIGNS |= dict.fromkeys(map(ord, "\xad\u200b\u2060\ufeff"), "")
_JOINERS = re.compile(r"(?<=[A-Za-zÀ-ɏ])[\u200c\u200d]+")  # Persian, Indic scripts and emoji need them
_UNKNOWN = re.compile(r"(?<=[^\W\d_])[\ue000-\uf8ff]+(?=[^\W\d_])|([\ue000-\uf8ff])")  # the first may be a ligature
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SOFT = re.compile(r"(?<=[^\W\d_])\xad[ \t]*\n(?=[ \t\f]*[^\W\d_])")
_SPLIT = re.compile(r"\b(\w++)[-‐¬][ \t]*\n[ \t]*(\f*)[ \t]*(\w+)")
_SUSPENDED = {"and", "or", "und", "oder", "et", "ou"}  # "pre- and postwar"
_TORN = re.compile(rf"\b([^\W\d_]++) ({'|'.join(LIGATURES)}) ([^\W\d_]+)")
_NEXT = re.compile(r"(?<![^\W\d_])([^\W\d_]++)(\s+)(?=([^\W\d_]+))")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_TABLE = re.compile(r"\||[^.!?:;,\s] {2,}\S|\S(?: {3,}|\t+)\S|^ *=+( +=+)+\s*$")
_RULE = re.compile(r"([!-/:-@[-`{-~])\1{2,}\s*$")
_ITEM = re.compile(r"\s*(?:[-*+•–—▪◦·]|\(?\d{1,3}[.)]|\(?[a-z]\))\s+")
_ALONE = re.compile(rf"\f*(?:#{{1,6}} |[><:]|\.\. |{_RULE.pattern})")
_UNDERLINED = re.compile(
    r"""^(?P<fence>```|~~~)(?:.*\n)+?(?P=fence)  # code is passed over
      | (?<![^\n]\n)^(?:(?P<over>([^\w\s])\3{2,})[ \t]*\n)?
        \ ?(?P<title>\S.*+)\n(?P<rule>([^\w\s])\6{2,})[ \t]*$
    """,
    re.MULTILINE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?:…。!?][\"'”’)\]]*$")
_FRONT_MATTER = re.compile(
    r"\A(---|\+\+\+)[ \t]*\n(?=\w)((?:[\w\"'][^\n:=]*[:=].*\n|[ \t\-#\[}\]].*\n|\n)*?)(?:\1|\.\.\.)[ \t]*(?:\n|\Z)"
)


def characters(text: str) -> str:
    """Return a text with ligatures spelled out and plain spaces, without soft hyphens, zero-width and control signs."""
    return _JOINERS.sub("", _UNKNOWN.sub(lambda match: "" if match[1] else " ", text.translate(_SIGNS)))


def count_words(text: str) -> Counter[str]:
    """Count words in lower case, hyphenated ones as one, without those that a line end splits."""
    return Counter(_WORD.findall(_SPLIT.sub(" ", characters(_SOFT.sub("-\n", text))).lower()))


def clean(text: str, words: Counter[str]) -> str:
    """Return a text with its words and paragraphs whole, which line ends, typesetting and readers had broken.

    Empty lines after a paragraph stand for those that were joined, so that the others keep their numbers. ``words`` is
    what :func:`count_words` gives for the folder, this text included.
    """
    shown = characters(_SOFT.sub("-\n", text)).split("\n")
    torn = _torn_pairs(_SPLIT.sub(" ", "\n".join(shown)), words)
    made = []
    for prose, run in groupby(zip(_prose_lines(shown), shown, text.split("\n"), strict=True), key=lambda one: one[0]):
        block = "\n".join(line if prose else written for _, line, written in run)
        lines = block.count("\n")
        if prose:
            block = _TORN.sub(partial(_untorn, words), _SPLIT.sub(partial(_unsplit, words), block))
            block = _joined(_NEXT.sub(partial(_mended, torn), block))
        made.append(block + "\n" * (lines - block.count("\n")))
    return "\n".join(made)


def without_front_matter(text: str) -> str:
    """Return a text with empty lines for its YAML or TOML front matter, and its title as a ``#`` line."""

    def kept(match: re.Match[str]) -> str:
        title = re.search(r"(?mi)^title\s*[:=]\s*([\"']?)(.*\S)\1\s*$", match[2])
        return "\n" * (match[0].count("\n") - 1) + f"{'# ' + title[2] if title else ''}\n"

    return _FRONT_MATTER.sub(kept, text)


def underlined_titles(text: str, markdown: bool = False) -> str:
    """Return a text whose underlined titles are ``#`` lines, with as many lines as before.

    The order in which the ways of underlining come gives the levels, as in reStructuredText; in Markdown ``=`` is the
    first level and ``-`` the second.
    """
    styles = ["=True", "-True"] if markdown else []

    def heading(match: re.Match[str]) -> str:
        over, title, rule = match["over"], (match["title"] or "").rstrip(), match["rule"]
        if not re.search(r"\w", title) or over not in (None, rule) or (len(rule) < len(title) and rule[0] != "="):
            return match[0]
        style = f"{rule[0]}{over is None}"
        styles.extend([style] * (style not in styles))
        return "\n" * (over is not None) + f"{'#' * min(6, styles.index(style) + 1)} {title}\n"

    return _UNDERLINED.sub(heading, text)


def join_pages(pages: Sequence[str]) -> str:
    """Return a document's pages without running headers, footers and page numbers, with empty lines between paragraphs.

    A form feed stands where each page but the first begins, even inside a sentence that goes on.
    """
    kept = _without_running_lines([[" ".join(line.split()) for line in page.split("\n")] for page in pages])
    lengths = sorted(len(line) for page in kept for line in page) or [0]
    full = lengths[len(lengths) * 9 // 10]
    made = ""
    for number, page in enumerate(kept):
        made += "\f" * (number > 0)
        for line, following in pairwise([*page, *next(filter(None, kept[number + 1 :]), [""])[:1]]):
            made += f"{line}\n{chr(10) * _ends(line, following, full)}"
    return made


def _prose_lines(lines: Sequence[str]) -> list[bool]:
    """Tell which lines are prose: not code, not of a table, and not empty."""
    kinds, fence = ["empty"], ""
    for line in lines:
        bare, opened, item = line.strip(), _FENCE.match(line), _ITEM.match(line)
        kind = "indented" if line.startswith(("   ", "\t")) else "prose"
        if fence:
            kind = "fence"
            fence = "" if bare.startswith(fence) and not bare.strip(fence[0]) else fence
        elif opened and (bare[0] == "`" or kinds[-1] == "empty"):  # tildes may also underline a title
            kind, fence = "fence", opened[1]
        elif not bare or _TABLE.search(line, item.end() if item else 0):
            kind = "table" if bare else "empty"
        kinds.append(kind)
    runs = [(kind, len(list(group))) for kind, group in groupby(kinds[1:])]
    around = ["empty", *(kind for kind, _ in runs), "empty"]
    found: list[bool] = []
    for (kind, count), before, after in zip(runs, around, around[2:], strict=False):
        code = kind == "indented" and before == after == "empty"
        found += [kind in ("prose", "indented") and not code] * count
    return found


def _unsplit(words: Counter[str], match: re.Match[str]) -> str:
    first, mark, second = match.groups()
    whole, compound = f"{first}{second}".lower(), f"{first}-{second}".lower()
    if second.lower() in _SUSPENDED:
        return f"{first}- {mark}{second}"
    letters = first.isalpha() and second.isalpha() and second.islower()
    one = letters and words[whole] >= words[compound] and (words[whole] or not words[first.lower()])
    return f"{first}{'' if one else '-'}{second}{mark}"


def _untorn(words: Counter[str], match: re.Match[str]) -> str:
    whole = "".join(match.groups())
    return whole if words[whole.lower()] else match[0]


def _torn_pairs(text: str, words: Counter[str]) -> dict[tuple[str, str], str]:
    """Return neighbours that are a known word with a ligature between them → that ligature; "" if one of them has it.

    One of the two must be no word of its own: all that the folder has of it are such neighbours, here.
    """
    pairs = [(match[1], match[3]) for match in _NEXT.finditer(text.lower())]
    found: dict[tuple[str, str], str] = {}
    for first, second in {*pairs}:
        has_it = first.endswith(LIGATURES) or second.startswith(LIGATURES)
        best = max((*LIGATURES, *[""] * has_it), key=lambda sign: words[f"{first}{sign}{second}"])
        if words[f"{first}{best}{second}"]:
            found[first, second] = best
    torn = Counter(part for pair in pairs if pair in found for part in pair)
    return {pair: sign for pair, sign in found.items() if any(words[part] <= torn[part] for part in pair)}


def _mended(torn: dict[tuple[str, str], str], match: re.Match[str]) -> str:
    sign = torn.get((match[1].lower(), match[3].lower()))
    return match[0] if sign is None else match[1] + sign + "\f" * match[2].count("\f")


def _joined(block: str) -> str:
    """Return prose in which a line goes on where it was wrapped."""
    made: list[str] = []
    for before, line in pairwise(["", *block.split("\n")]):
        if len(before) < WIDE or _ITEM.match(line) or _ALONE.match(line) or _ALONE.match(before):
            made.append(line)
        else:
            made[-1] = f"{made[-1].rstrip()} {line.strip(' ')}"
    return "\n".join(made)


def _ends(line: str, following: str, width: int) -> bool:
    """Whether a paragraph ends with this line, by its length and that of a full line."""
    if line[:1] == "#" or following[:1] == "#":
        return True
    if _SENTENCE_END.search(line):
        return len(line) < 0.85 * width
    return len(line) < 0.6 * width and not following[:1].islower()


def _without_running_lines(pages: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the lines of pages, without empty ones and those at the edges that pages nearby have but for digits."""
    kept = [[line for line in page if line] for page in pages]
    masked = [[re.sub(r"\d+|\b[ivxlc]+\b", "0", line.lower()) for line in page] for page in kept]
    # Rows of numbers are a table that goes on.
    words = [[line if line.count("0") < 3 or re.search(r"[^\W\d_]", line) else "" for line in page] for page in masked]
    edges = [{*page[:EDGE], *page[-EDGE:]} - {""} for page in words]
    for number, page in enumerate(words if len(pages) >= FEWEST_PAGES else []):
        around = edges[max(0, number - AROUND) : number + AROUND + 1]
        stays = [sum(line in edge for edge in around) < max(2, len(around) / 3) for line in page]
        first = [*stays[:EDGE], True].index(True)
        last = [*stays[first:][: -EDGE - 1 : -1], True].index(True)
        kept[number] = kept[number][first : len(page) - last]
    return kept
