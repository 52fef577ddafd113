"""Pairs of public archives that are no books: ontologies, command lines, snippets of code and abstracts of papers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lbr_st.data.texts import normalise
from lbr_st.domains.textbooks import Row, grouped, passages

QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
CITED = re.compile(r"\s*\[\w+:[^\]]*\]")
RELATION = re.compile(r"(?<=[a-z])_(?=[a-z])")  # "has_symptom" in a definition
NO_NAME = re.compile(r"\W?[A-Z0-9-]+|\w+:\w+|.{0,3}|.{80,}")  # codes, and what is too long
EMPTY_WORD = re.compile(
    r"an?|and|any|as|at|by|for|from|has|in|is|it|o[fnr]|some|that|the|to|type|use|used|using|where|which|with"
)
MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[`*]")
BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
BULLET = re.compile(r"^- (.*(?:\n  .*)*)", re.MULTILINE)
SENTENCE = re.compile(r"(?<=[.!?])\s+")

AGE_AND_SEX = re.compile(
    "Adolescent|(Young )?Adult|Aged(, 80 and over)?|Animals|Child(, Preschool)?|Female|Humans|Infant|Male|Middle Aged"
)


def terms(folder: Path, fewest_words: Mapping[str, int], left_out: str = r"(?!)") -> Iterator[Row]:
    """Yield name → definition of the current terms in OBO files, and first exact synonym → definition.

    ``fewest_words`` of a definition are given by what a term's id begins with; other terms are left out, and so are
    definitions that ``left_out`` matches or that add fewer than three words to the name.
    """
    known = set()
    for file in sorted(folder.rglob("*.obo")):
        for block in file.read_text(encoding="utf-8").split("\n[Term]\n")[1:]:
            lines = [line.partition(": ")[::2] for line in block.split("\n\n")[0].splitlines()]
            values = dict(reversed(lines))
            fewest, quoted = fewest_words.get(values["id"].partition(":")[0]), QUOTED.match(values.get("def", ""))
            if not fewest or not quoted or "name" not in values or "is_obsolete" in values or values["id"] in known:
                continue
            known.add(values["id"])
            name = values["name"].replace("_", " ")
            definition = " ".join(RELATION.sub(" ", CITED.sub("", _unescaped(quoted[1]))).split())
            old, said = (re.findall(r"\w+", text.lower()) for text in (name, definition))
            new = [word for word in said if word not in old and not EMPTY_WORD.fullmatch(word)]
            short = len(definition.split()) < fewest or len(new) < 3
            if short or re.search(rf"http|www\.|{left_out}", definition):
                continue
            yield "glossary", name, definition
            synonyms = (QUOTED.match(value) for kind, value in lines if kind == "synonym" and '" EXACT' in value)
            for synonym in (_unescaped(match[1]) for match in synonyms if match):
                key = normalise(synonym)
                if key != normalise(name) and key not in normalise(definition) and not NO_NAME.fullmatch(synonym):
                    yield "glossary", synonym, definition
                    break


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def commands(folder: Path) -> Iterator[Row]:
    """Yield what a Bash command does → the command, of two files with a line for each; each once, two of three."""
    known: set[str] = set()
    kept = 0
    files = [(folder / "data/bash" / f"all.{kind}").read_text(encoding="utf-8") for kind in ("nl", "cm")]
    for lines in zip(*(text.split("\n") for text in files), strict=True):
        query, command = (" ".join(line.split()) for line in lines)
        fits = 5 <= len(query.split()) <= 40 and 2 <= len(command.split()) <= 60
        if fits and not known & (keys := {normalise(query), f" {command}"}):
            known |= keys
            kept += 1
            if kept % 3:
                yield "intent", query, command


def snippets(folder: Path) -> Iterator[Row]:
    """Yield what a snippet does, and how, → its code, of Markdown pages with a paragraph, bullets and a block of code.

    The bullets (form keywords: they name the functions that are used) are left out below 12 words and cut at 60.
    """
    for file in sorted(folder.rglob("*.md")):
        text = file.read_text(encoding="utf-8").split("---", 2)[2]
        if block := BLOCK.search(text):
            above, code = text[: block.start()].strip(), block[1].strip("\n")
            yield "intent", _plain(above.split("\n\n")[0]).rstrip("."), code
            how = grouped(SENTENCE.split(" ".join(map(_plain, BULLET.findall(above)))), 60)[0]
            if len(how.split()) >= 12:
                yield "keywords", how, code


def _plain(text: str) -> str:
    return " ".join(MARKUP.sub(r"\1", text).split())


def abstracts(folder: Path) -> Iterator[Row]:
    """Yield a paper's question → its conclusion (question) and the abstract's beginning (title); headings → its end."""
    (file,) = folder.rglob("*.json")
    for paper in json.loads(file.read_text(encoding="utf-8")).values():
        parts = [" ".join(part.split()) for part in paper["CONTEXTS"]]
        found = passages(parts) or [" ".join(parts)]
        if len(paper["LONG_ANSWER"].split()) >= 20:
            yield "question", paper["QUESTION"], paper["LONG_ANSWER"]
        yield "title", paper["QUESTION"], found[0]
        subjects = [subject for subject in paper["MESHES"] if not AGE_AND_SEX.fullmatch(subject)]
        if len(subjects) >= 4:
            yield "keywords", ", ".join(subjects[:6]), found[-1]
