"""Pairs and passages of textbooks in CNXML, the format of OpenStax: headings, glossaries and what uses their terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias
from xml.etree.ElementTree import Element, parse

Row: TypeAlias = tuple[str, str, str]
"""The form of a pair, its query and its document; both "" of a passage that is only read."""

FEWEST_WORDS, ENOUGH_WORDS, MOST_WORDS = 40, 90, 200
"""Of a passage: fewer are left out, so many end one, and more are cut."""
NO_TEXT = frozenset({"figure", "table", "note", "footnote", "media", "example", "exercise", "equation", "cite"})
# By heading or class.
NO_PROSE = re.compile(
    r"(?i:learning.(objectives|outcomes)|(chapter.|section.)?summary|key.terms|references|bibliography|assessment|review"
    r"|steps to)\b"
)
NO_QUERY = re.compile(r"(?i:$|introduction$|preface|why it matters)")
SPLIT = re.compile(r"(?<=[.!?:;])\s+(?=[A-Za-z0-9\"“(])")
ENDED = re.compile(r"[\"“‘'(\[]?[A-Z0-9].*[.!?][\"”’')\]]*", re.DOTALL)
# A figure or table is named by a link without text, which leaves "(see )", ", as shown in ." or "shows the stages."
POINTER = re.compile(
    r"\s*\((?:see|shown in|[^\w()])*\)|,? ?\bas (?:shown|illustrated|seen) in(?=\s*[,.])|(?<=[.!?])\s+(?:shows|lists"
    r"|provides|presents|describes|outlines|illustrates|depicts|compares|summarizes|gives|displays|helps)\b[^.]*\."
)
DANGLING = re.compile(r"\b(?:shown|seen|depicted|illustrated) in[.,;:)]|\b(?:given|listed|seen),|\bsee[.,;)]")


def book(folder: Path, chapters: str = "") -> Iterator[Row]:
    """Yield the pairs and other passages of the books in a folder of ``collections`` and ``modules``, each pair once.

    heading: a section's heading, after the one above it if it has one or two words, to the section's first passage; as
    question if it asks one. glossary: a term to its definition of five words or more. intent: the definition to the
    module's first passage that uses the term. ``chapters`` is a pattern that a chapter's title must match.
    """
    pairs: dict[tuple[str, str], Row] = {}
    others: dict[str, None] = {}
    for file in sorted((folder / "collections").glob("*.xml")):
        for name in _modules(parse(file).getroot(), re.compile(chapters, re.IGNORECASE)):
            module = parse(folder / "modules" / name / "index.cnxml").getroot()
            title, content = _title(module), module.find("{*}content")
            sections = [] if content is None or NO_PROSE.match(title) else [*_sections(content, [title])]
            read = [passage for _, found in sections for passage in found]
            others.update(dict.fromkeys(read))
            for row in (*_headings(sections), *_glossary(module, read)):
                pairs.setdefault(row[1:], row)
    documents = {document for _, document in pairs}
    yield from (*pairs.values(), *(("", "", passage) for passage in others if passage not in documents))


def _headings(sections: Iterable[tuple[list[str], list[str]]]) -> Iterator[Row]:
    for path, found in sections:
        if found and not NO_QUERY.match(heading := path[-1]):
            if len(heading.split()) <= 2 and len(path) > 1 and heading.lower() not in path[-2].lower():
                heading = f"{path[-2]}: {heading}"
            asks = heading.endswith("?") and len(heading.split()) >= 4
            yield "question" if asks else "heading", heading, found[0]


def _glossary(module: Element, passages: list[str]) -> Iterator[Row]:
    for entry in module.iterfind(".//{*}definition"):
        term, meaning = _title(entry, "term"), _title(entry, "meaning")
        if term and len(meaning.split()) >= 5:
            yield "glossary", term, meaning
            named = re.compile(r"\b" + re.escape(re.sub(r"\s*\(.*?\)", "", term)), re.IGNORECASE)
            yield from (("intent", meaning, passage) for passage in [*filter(named.search, passages)][:1])


def _modules(node: Element, chapters: re.Pattern[str], path: str = "") -> Iterator[str]:
    """Yield the names of the modules below a chapter whose titles match, in the book's order."""
    for part in node.iterfind("{*}content/*"):
        if (name := part.get("document")) is None:
            yield from _modules(part, chapters, f"{path} {_title(part)}")
        elif path and chapters.search(path):
            yield name


def _sections(section: Element, path: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the headings above each section, and its own passages."""
    yield path, passages(_paragraphs(section))
    for part in section.iterfind("{*}section"):
        if not NO_PROSE.match(heading := _title(part)) and not NO_PROSE.match(part.get("class", "")):
            yield from _sections(part, [*path, heading])


def _paragraphs(section: Element) -> Iterator[str]:
    """Yield a section's paragraphs of prose; a list belongs to the paragraph that announces it with a colon."""
    texts: list[str] = []
    for part in section:
        if _tag(part) == "para":
            texts.append(" ".join([_clean(_text(part)), *map(_listed, part.iterfind("{*}list"))]))
        elif _tag(part) == "list" and (listed := _listed(part)):
            texts[-1:] = [f"{texts[-1]} {listed}"] if texts and texts[-1].endswith(":") else [*texts[-1:], listed]
    for text in texts:
        letters = sum(character.isalpha() or character.isspace() for character in text)
        if ENDED.fullmatch(text) and letters >= 0.85 * len(text) and not DANGLING.search(text):
            yield text


def _listed(part: Element) -> str:
    items = [_clean(_text(item)) for item in part.iterfind("{*}item")]
    text = " ".join(item if item[-1] in ".!?:" else f"{item.rstrip(';,')};" for item in items if item).rstrip(";:")
    return text if not text or text[-1] in ".!?" else f"{text}."


def _text(part: Element) -> str:
    """Return the text in an element without figures, tables and the like."""
    texts = [part.text or ""]
    for inner in part:
        kind = _tag(inner)
        if kind == "math":
            texts.append("".join(map(str.strip, inner.itertext())))
        elif kind == "newline":
            texts.append(" ")
        elif kind not in NO_TEXT and not (kind == "list" and _tag(part) == "para"):
            texts.append(f" {_text(inner)} " if kind in ("list", "item", "para") else _text(inner))
        texts.append(inner.tail or "")
    return "".join(texts)


def _clean(text: str) -> str:
    """Return a text with single spaces, without what pointed to a figure or a table."""
    text = POINTER.sub("", " ".join(text.split()))
    text = re.sub(r"\s+([.,;:!?)])", r"\1", text).replace("( ", "(").strip()
    return re.sub(r"[,;](?=\.)|(?<=\.);", "", text)


def _title(part: Element, kind: str = "title") -> str:
    found = part.find(f"{{*}}{kind}")
    return "" if found is None else _clean(_text(found))


def _tag(part: Element) -> str:
    return str(part.tag).rpartition("}")[2]


def passages(paragraphs: Iterable[str]) -> list[str]:
    """Return neighbouring paragraphs as passages of 40 to 200 words; a longer paragraph is cut between sentences."""
    made, is_open = list[str](), False
    for text in paragraphs:
        pieces = grouped(SPLIT.split(text)) if len(text.split()) > MOST_WORDS else [text]
        begun = [made.pop()] if is_open and len(pieces) == 1 else []
        made += grouped([*begun, *pieces])
        is_open = len(pieces) == 1 and len(made[-1].split()) < ENOUGH_WORDS
    if len(made) > 1 and len(made[-1].split()) < FEWEST_WORDS:
        made[-2:] = grouped(made[-2:])
    return [text for text in made if FEWEST_WORDS <= len(text.split()) <= MOST_WORDS]


def grouped(texts: Iterable[str], most_words: int = MOST_WORDS) -> list[str]:
    """Return texts joined, one after the other, to at most so many words; none is cut."""
    made: list[str] = []
    for text in texts:
        if made and len(made[-1].split()) + len(text.split()) <= most_words:
            made[-1] += f" {text}"
        else:
            made.append(text)
    return made
