"""Passages of documents: cut at headings, then between paragraphs and sentences, to a budget of tokens.

No library does the cutting. Of hard-wrapped text semantic-text-splitter, chonkie and langchain-text-splitters make more
than half of their cuts inside a sentence, at line ends.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from lbr_st.data.documents import read_files
from lbr_st.data.lines import kind_of, write_rows
from lbr_st.data.pairs import SENTENCE_END
from lbr_st.data.sources import READABLE
from lbr_st.data.texts import WRITTEN_WITHOUT_SPACES, digest, normalise
from lbr_st.errors import LBRError
from lbr_st.files import notice

if TYPE_CHECKING:
    from datasets import Dataset

BELOW = " > "  # between the headings of a path

_BLOCK = re.compile(
    r"""^\ {0,3}(?P<fence>`{3,}(?=[^`\n]*$)|~{3,}).*(?:\n|\Z)(?:.*\n)*?(?:\ {0,3}(?P=fence)[`~]*[ \t]*$|.*\Z)
      | ^\ {0,3}(?P<level>\#{1,6})[ \t]+(?P<title>.*?)[ \t#]*$
      | (?:^[ \t]*\|.*\n?)++  # a table
      | (?P<text>(?:^(?![ \t]*\||\ {0,3}(?:\#{1,6}[ \t]|`{3,}(?=[^`\n]*$)|~{3})).*\S.*\n?)++)
    """,
    re.MULTILINE | re.VERBOSE,
)
_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]|\{#[^}]*\}")
_NO_SPACES = WRITTEN_WITHOUT_SPACES.pattern.strip("[]")
_SIGNS = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[^\w\s]")
_WORDS = re.compile(rf"[{_NO_SPACES}]|[^\W\d_{_NO_SPACES}]+")
# No space follows the full stops of Chinese and Japanese, and no full stop the items of most lists.
_END = re.compile(rf"{SENTENCE_END.pattern}|[\u3002\uff01\uff1f][」』”’)]*|\n(?=\s*(?:[-*+•]|\d+[.)])\s)")


class Piece(NamedTuple):
    """A part of a document; ``broken`` if it begins or ends inside a sentence."""

    start: int
    end: int
    tokens: int
    broken: bool


def num_words(text: str) -> int:
    """Return the number of words and marks in a text; a Chinese or Japanese character is a word."""
    return len(_SIGNS.findall(text))


def sentence_ends(text: str, start: int = 0, end: int | None = None) -> list[int]:
    """Return where sentences and items of lists end in a text, before the white space that follows."""
    ends = []
    for match in _END.finditer(text, start, len(text) if end is None else end):
        after = text[match.end() : match.end() + 1]
        if match[0][0] not in ".!?" or not (after.islower() or after.isdigit()):  # unlike "Fig. 3" and "e.g. the"
            ends.append(match.start() + len(match[0].rstrip()))
    return ends


def read_documents(
    folder: str | Path,
    *,
    num_tokens: Callable[[str], int] | None = None,
    max_tokens: int = 192,
    text_column: str = "text",
    say: Callable[[str], None] = notice,
) -> Dataset:
    """Return the passages of a folder of documents, or of one file: ``text``, ``heading``, ``file`` and ``place``.

    A passage has ``max_tokens`` at most, as ``num_tokens`` counts them; None counts words and marks. It lies below one
    heading ("Chapter > Section", or ""), and its place is where it begins: "page 3", "line 120" or "row 7". Code,
    tables and paragraphs stay whole where they fit. Passages that read alike are kept once, and those of fewer than two
    words (page numbers, rulers) are left out. The documents are never in memory together.

    Raises:
        LBRError: There are fewer than two passages, or no file can be read.
    """
    sizes, dropped, broken, words, known = list[int](), Counter[str](), 0, 0, set[int]()

    def rows() -> Iterator[dict[str, str]]:
        nonlocal broken, words
        for document in read_files(folder, text_column=text_column, say=say):
            line, seen = document.line, 0
            for heading, piece in _pieces(document.text, num_tokens or num_words, max_tokens):
                text = document.text[piece.start : piece.end].lstrip()
                start, text = piece.end - len(text), text.rstrip()
                line, seen = line + document.text.count("\n", seen, start), start
                key = digest(normalise(text))
                if key in known or len(_WORDS.findall(text)) < 2:
                    dropped["that repeat another" if key in known else "of fewer than two words"] += 1
                    continue
                known.add(key)
                sizes.append(piece.tokens)
                broken, words = broken + piece.broken, words + num_words(text)
                place = f"row {document.line}" if kind_of(Path(document.file)) in READABLE else f"line {line}"
                place = f"page {bisect_right(document.pages, start)}" if document.pages else place
                yield {"text": text, "heading": heading, "file": document.file, "place": place}

    table = write_rows(rows(), ("text", "heading", "file", "place"))
    left_out = ", ".join(f"{count:,} {what}" for what, count in dropped.items()) or "none"
    if len(table) < 2:
        raise LBRError(f"fewer than two passages (left out: {left_out}).", fix="Give documents with more text.")
    a_word = sum(sizes) / words
    say(
        f"{len(table):,} passages, {median(sizes):.0f} tokens in the median, {a_word:.1f} a word; "
        f"{broken / len(table):.1%} cut inside a sentence at {max_tokens} tokens; left out: {left_out}."
    )
    if a_word > 2.5:  # most words are spelt letter by letter; English has 1.1 to 1.5
        say(f"Warning: with {a_word:.1f} tokens a word the base hardly knows this language. Choose one that does.")
    return table


def _pieces(text: str, num_tokens: Callable[[str], int], most: int) -> Iterator[tuple[str, Piece]]:
    """Yield the passages of a document, with their headings."""
    for heading, blocks in _sections(text):
        parts = [part for block in blocks for part in _parts(text, block, num_tokens, most)]
        total = max(1, sum(part.tokens for part in parts))
        share = total / -(-total // most)  # all passages of a section are about as long
        whole, done, number = parts[0], parts[0].tokens, 1
        for part in parts[1:]:
            if whole.tokens + part.tokens > most or done + part.tokens / 2 > share * number:
                yield heading, whole
                whole, number = part, number + 1
            else:
                whole = Piece(whole.start, part.end, whole.tokens + part.tokens, whole.broken or part.broken)
            done += part.tokens
        yield heading, whole


def _sections(text: str) -> Iterator[tuple[str, list[tuple[int, int, bool]]]]:
    """Yield the headings above each section, and its blocks: start, end, and whether it is code or a table."""
    path, blocks, begun = list[tuple[int, str]](), list[tuple[int, int, bool]](), 0
    for match in chain(_BLOCK.finditer(text), [None]):
        if match and not match["level"]:
            blocks.append((begun, match.end(), match["text"] is None))  # with the blank lines before it
        elif blocks:
            yield BELOW.join(title for _, title in path if title), blocks
            blocks = []
        if match and match["level"]:
            path = [above for above in path if above[0] < len(match["level"])]
            path.append((len(match["level"]), _MARKUP.sub(r"\1", match["title"]).strip()))
        begun = match.end() if match else begun


def _parts(
    text: str, block: tuple[int, int, bool], num_tokens: Callable[[str], int], most: int, level: int = 0
) -> Iterator[Piece]:
    """Yield a block whole if it fits; else its sentences, a sentence's lines, and halves of these until they fit."""
    start, end, whole = block
    if end - start <= 32 * most:  # counting the tokens of a huge one takes long
        tokens = num_tokens(text[start:end])
        if tokens <= most or end - start < 2:
            yield Piece(start, end, tokens, level > 1 and not whole)
            return
    if level == 0 and not whole:
        inner = sentence_ends(text, start, end)
    elif level < 2:
        inner = [start + match.start() for match in re.finditer("\n", text[start:end])]
    else:
        inner = [max(text.rfind(" ", start + 1, (start + end) // 2), 0) or (start + end) // 2]
    for part in pairwise([start, *(at for at in inner if start < at < end), end]):
        yield from _parts(text, (*part, whole), num_tokens, most, level + 1)
