"""Stage-1 examples: pairs of a context to compress and a target to generate from what was kept."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lbr_st.data.lines import map_rows, refuse_missing, write_rows
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# A sentence's end, its closing quotes or brackets, and the white space before the next one.
SENTENCE_END = re.compile(r"[.!?。!?][\"'”’)\]]*\s+")
SPACE = re.compile(r"\s+")


def reconstruct_pairs(texts: Dataset | Iterable[str], prompt: str = "") -> Dataset:
    """Return (prompt + text → text) with the columns ``context`` and ``target``.

    Args:
        texts: Texts, or a dataset with a column ``text``.
        prompt: Put before the context, exactly as ``encode`` puts it.

    Raises:
        LBRError: There is no text.
    """
    return _examples(_texts(texts), _prompted, prompt=prompt, context="text", target="text")


def continue_pairs(
    texts: Dataset | Iterable[str], prompt: str = "", min_words: int = 16, split: float = 0.5
) -> Dataset:
    """Return (prompt + a passage's first part → the rest) with the columns ``context`` and ``target``.

    A passage is cut at the sentence boundary nearest to ``split``, else at the word boundary nearest to it. A
    sentence boundary counts only where both parts keep a tenth of the passage (our choice: "Fig. 3 shows …" ends
    no sentence). Passages that are too short are left out; how many is logged.

    Args:
        texts: Passages, or a dataset with a column ``text``.
        prompt: Put before the context, exactly as ``encode`` puts it.
        min_words: The fewest words, told apart by white space, of a passage that is used; 2 or more.
        split: Where to cut, as a share of the passage's characters, between 0 and 1.

    Raises:
        LBRError: An argument is out of range, or no passage is long enough.
    """
    if min_words < 2 or not 0 < split < 1:
        raise LBRError(
            f"min_words={min_words}, split={split}.", fix="min_words must be 2 or more, and split between 0 and 1."
        )
    passages = _texts(texts)
    examples = _examples(passages, _continue, prompt=prompt, min_words=min_words, split=split)
    skipped = len(passages) - len(examples)
    if not len(examples):
        raise LBRError(
            f"all {skipped} passages have fewer than {min_words} words.", fix="Lower min_words or use longer passages."
        )
    if skipped:
        logger.warning("continue: left out %d of %d passages, shorter than %d words", skipped, len(passages), min_words)
    return examples


def natural_pairs(pairs: Dataset | Iterable[Mapping[str, str]], prompt: str = "", reverse: bool = False) -> Dataset:
    """Return (prompt + query → document) with the columns ``context`` and ``target``.

    Args:
        pairs: Rows with ``query`` and ``document``, as :func:`lbr_st.data.read_pairs` gives them.
        prompt: Put before the context, exactly as ``encode`` puts it: the query prompt, or the document prompt
            with ``reverse``.
        reverse: Make it (prompt + document → query).

    Raises:
        LBRError: There is no pair, or a row lacks a column.
    """
    context, target = ("document", "query") if reverse else ("query", "document")
    return _examples(_table(pairs, ["query", "document"]), _prompted, prompt=prompt, context=context, target=target)


def record_pairs(records: Dataset, query_prompt: str = "", document_prompt: str = "") -> Dataset:
    """Return (prompt + name → what the domain's text says of it) with the columns ``context`` and ``target``.

    Args:
        records: ``name``, ``text`` and ``side`` ("query" or "document"), as a domain task has them.
        query_prompt: Put before a name that will be a query, exactly as ``encode`` puts it.
        document_prompt: Put before one that will be a document.

    Raises:
        LBRError: There is no record.
    """
    prompts = {"query": query_prompt, "document": document_prompt}
    return _examples(records, _record, prompts=prompts)


def mix(parts: Mapping[str, tuple[Dataset, float]], seed: int = 0) -> Dataset:
    """Concatenate and shuffle datasets with the same columns, each as often as its weight says.

    Args:
        parts: Name → (dataset, weight). Weight 1 takes each row once, 0.5 a random half, 2.5 each row twice and a
            random half once more; 0 leaves the part out.
        seed: Same seed, same rows in the same order.

    Raises:
        LBRError: A weight is negative, the parts differ in columns, or nothing is left.
    """
    import numpy as np
    from datasets import concatenate_datasets

    chosen: list[Dataset] = []
    for name, (part, weight) in parts.items():
        if weight < 0:
            raise LBRError(f"the weight is {weight}.", where=name, fix="Give 0 or more.")
        if chosen and part.column_names != chosen[0].column_names:
            raise LBRError(
                f"its columns are {part.column_names}, not {chosen[0].column_names}.", where=name, fix="Rename them."
            )
        whole, extra = divmod(round(weight * len(part)), max(1, len(part)))
        chosen += [part] * whole
        if extra:
            chosen.append(part.select(np.random.default_rng(seed).permutation(len(part))[:extra]))
    if not chosen:
        raise LBRError("nothing is left to mix.", fix="Give at least one non-empty part a weight above 0.")
    mixed = concatenate_datasets(chosen)
    # The order of Dataset.shuffle, which would write a file of numbers next to the table.
    return mixed.select(np.random.default_rng(seed).permutation(len(mixed)))


def _cut(text: str, split: float) -> int:
    """Return the index at which to cut: white space stands just before it or right at it."""
    middle, margin = len(text) * split, len(text) / 10
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    ends = [end for end in ends if margin <= end <= len(text) - margin]
    return min(ends or [match.end() for match in SPACE.finditer(text)], key=lambda end: abs(end - middle))


def _prompted(rows: dict[str, list[str]], prompt: str, context: str, target: str) -> dict[str, list[str]]:
    return {"context": [prompt + text for text in rows[context]], "target": rows[target]}


def _continue(rows: dict[str, list[str]], prompt: str, min_words: int, split: float) -> dict[str, list[str]]:
    passages = [text.strip() for text in rows["text"]]
    cuts = [(text, _cut(text, split)) for text in passages if len(text.split()) >= min_words]
    return {
        "context": [prompt + text[:cut].rstrip() for text, cut in cuts],
        "target": [text[cut:].lstrip() for text, cut in cuts],
    }


def _record(rows: dict[str, list[str]], prompts: dict[str, str]) -> dict[str, list[str]]:
    named = zip(rows["side"], rows["name"], strict=True)
    return {"context": [prompts[side] + name for side, name in named], "target": rows["text"]}


def _examples(rows: Dataset, make: Callable[..., dict[str, list[str]]], **options: Any) -> Dataset:
    if not len(rows):
        raise LBRError("there is no text to make examples of.", fix="Give at least one.")
    return map_rows(rows, make, {"context": "string", "target": "string"}, fn_kwargs=options, desc="Making pairs")


def _texts(texts: Dataset | Iterable[str]) -> Dataset:
    return _table(texts if hasattr(texts, "column_names") else ({"text": text} for text in texts), ["text"])


def _table(rows: Any, columns: list[str]) -> Dataset:
    """Return these columns of a dataset, or of rows that come one by one."""
    if hasattr(rows, "column_names"):
        refuse_missing(columns, rows.column_names, "the dataset")
        return rows.select_columns(columns)

    def checked() -> Iterator[Mapping[str, str]]:
        for number, row in enumerate(rows, start=1):
            refuse_missing(columns, row, f"row {number}")
            yield row

    return write_rows(checked(), columns)
