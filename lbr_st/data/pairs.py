"""Stage 1's pairs: a ``context`` to compress, and a ``target`` to generate from what was kept of it.

Each function puts its prompt before the context, exactly as ``encode`` does, and refuses to make pairs of nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lbr_st.data.lines import map_rows, refuse_missing, write_rows
from lbr_st.data.texts import column_digests, normalise
from lbr_st.errors import LBRError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

logger = logging.getLogger(__name__)

# A sentence's end, its closing quotes or brackets, and the white space before the next one.
SENTENCE_END = re.compile(r"[.!?。!?][\"'”’)\]]*\s+")
SPACE = re.compile(r"\s+")
FEWEST_WORDS = 16
"""A passage of fewer words, told apart by white space, has too little to continue."""

RECORDS = "records"
COMPARED = {"pairs": "document", "texts": "text", RECORDS: "text"}
"""Kind of table → the column whose texts are hidden from stage 1 for the bottleneck gain."""


def reconstruct_pairs(texts: Dataset | Iterable[str], prompt: str = "") -> Dataset:
    """Return (prompt + text → text) of texts, or of a dataset with a column ``text``."""
    return _made(_table(texts, ["text"]), lambda rows: ((prompt + text, text) for text in rows["text"]))


def continue_pairs(texts: Dataset | Iterable[str], prompt: str = "") -> Dataset:
    """Return (prompt + a passage's first part → the rest) of texts, or of a dataset with a column ``text``.

    A passage is cut at the sentence boundary nearest to its middle, else at the nearest word boundary. A sentence
    boundary counts only where both parts keep a tenth of the passage ("Fig. 3 shows …" ends no sentence). Passages of
    fewer than 16 words are left out; how many is logged.

    Raises:
        LBRError: No passage is long enough.
    """

    def halves(rows: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
        for text in map(str.strip, rows["text"]):
            if len(text.split()) >= FEWEST_WORDS:
                cut = _cut(text)
                yield prompt + text[:cut].rstrip(), text[cut:].lstrip()

    passages = _table(texts, ["text"])
    pairs = _made(passages, halves)
    skipped = len(passages) - len(pairs)
    if not len(pairs):
        raise LBRError(f"all {skipped} passages have fewer than {FEWEST_WORDS} words.", fix="Use longer passages.")
    if skipped:
        logger.warning("continue: left out %d of %d passages, all short", skipped, len(passages))
    return pairs


def natural_pairs(pairs: Dataset | Iterable[Mapping[str, str]], prompt: str = "", reverse: bool = False) -> Dataset:
    """Return (query prompt + query → document), or with ``reverse`` (document prompt + document → query).

    ``pairs`` are rows with ``query`` and ``document``, as :func:`lbr_st.data.sources.read_pairs` gives them.
    """
    context, target = ("document", "query") if reverse else ("query", "document")
    return _made(
        _table(pairs, ["query", "document"]),
        lambda rows: ((prompt + one, other) for one, other in zip(rows[context], rows[target], strict=True)),
    )


def record_pairs(records: Dataset, query_prompt: str = "", document_prompt: str = "") -> Dataset:
    """Return (prompt + name → what the domain's text says of it).

    ``records`` have ``name``, ``text`` and ``side`` ("query" or "document", which names the prompt), as a domain task
    has them.
    """
    prompts = {"query": query_prompt, "document": document_prompt}

    def said(rows: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
        for side, name, text in zip(rows["side"], rows["name"], rows["text"], strict=True):
            yield prompts[side] + name, text

    return _made(records, said)


KINDS: dict[str, tuple[str, Callable[[Dataset, str, str], Dataset]]] = {
    "reconstruct": ("texts", lambda rows, _, document: reconstruct_pairs(rows, document)),
    "continue": ("texts", lambda rows, _, document: continue_pairs(rows, document)),
    "natural": ("pairs", lambda rows, query, _: natural_pairs(rows, query)),
    "reverse": ("pairs", lambda rows, _, document: natural_pairs(rows, document, reverse=True)),
    RECORDS: (RECORDS, record_pairs),
}
"""Kind of pair → the table it is made of, and a function of that table, the query prompt and the document prompt."""


def learn_pairs(
    tables: Mapping[str, Dataset],
    kinds: Sequence[str],
    *,
    query_prompt: str,
    document_prompt: str,
    count: int,
    seed: int,
) -> tuple[Dataset, Dataset | None]:
    """Make stage 1's (context, target) pairs, prompts included.

    Args:
        tables: What a run trains on, by the kinds of table in :data:`COMPARED`.
        kinds: The kinds of pair, of :data:`KINDS`.
        query_prompt: Put before contexts that will be queries.
        document_prompt: Put before contexts that will be documents.
        count: Pairs to hold out, at most.
        seed: Of the order.

    Returns:
        The pairs to train on, and held-out ones for the bottleneck gain, of texts that training never sees. None if the
        texts are too few or too short for any.

    Raises:
        LBRError: A kind of pair needs a table that is missing, or there are too few texts.
    """
    import numpy as np

    def made(kind: str, given: Mapping[str, Dataset]) -> Dataset:
        table, make = KINDS[kind]
        if table not in given:
            fix = "Leave this kind out, or name such data. Domain tasks such as compounds and conditions have records."
            raise LBRError(f"{kind!r} pairs need {table}, and the data has none.", where="learn.pairs", fix=fix)
        return make(given[table], query_prompt, document_prompt)

    digests = {kind: column_digests(rows, COMPARED[kind], normalise) for kind, rows in tables.items()}
    # One set of hidden texts for all, since a text may also be the document of a pair.
    hidden = np.concatenate([_some(texts, count) for texts in digests.values()])
    is_hidden = {kind: np.isin(texts, hidden) for kind, texts in digests.items()}
    shown, held = (
        {kind: rows.select(np.flatnonzero(is_hidden[kind] == side)) for kind, rows in tables.items()}
        for side in (False, True)
    )
    train = mix([made(kind, shown) for kind in kinds], seed)
    measured = []
    for kind in kinds:
        # A handful of texts may have none long enough to continue. Training has, or the line above had raised.
        with suppress(LBRError):
            measured.append(made(kind, held))
    if sum(map(len, measured)) < 2:
        return train, None
    mixed = mix(measured, seed)
    return train, mixed.select(range(min(count, len(mixed))))


def mix(parts: Sequence[Dataset], seed: int = 0) -> Dataset:
    """Return the rows of all parts, shuffled by ``seed``."""
    import numpy as np
    from datasets import concatenate_datasets

    whole = concatenate_datasets(list(parts))
    # The order of Dataset.shuffle, which would write a file of numbers next to the table.
    return whole.select(np.random.default_rng(seed).permutation(len(whole)))


def _some(texts: np.ndarray, count: int) -> np.ndarray:
    """Return which ``count`` texts to hide: at most a tenth of a small set, but two, since the gain needs two."""
    import numpy as np

    distinct = np.unique(texts)  # sorted: digests are in a random order
    if len(distinct) < 4:  # too few to learn from and to measure on
        return distinct[:0]
    return distinct[: max(2, min(count, len(distinct) // 10))]


def _cut(text: str) -> int:
    """Return the index at which to cut: white space stands just before it or right at it."""
    middle, margin = len(text) / 2, len(text) / 10
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    ends = [end for end in ends if margin <= end <= len(text) - margin]
    return min(ends or [match.end() for match in SPACE.finditer(text)], key=lambda end: abs(end - middle))


def _made(rows: Dataset, make: Callable[[dict[str, list[str]]], Iterable[tuple[str, str]]]) -> Dataset:
    """Return what ``make`` gives for batches of rows: contexts and targets."""
    if not len(rows):
        raise LBRError("there is no text to make pairs of.", fix="Give at least one.")

    def batch(given: dict[str, list[str]]) -> dict[str, list[str]]:
        made = list(make(given))
        return {"context": [context for context, _ in made], "target": [target for _, target in made]}

    return map_rows(rows, batch, {"context": "string", "target": "string"}, desc="Making pairs")


def _table(rows: Any, columns: list[str]) -> Dataset:
    """Return these columns of a dataset, or of rows (of one column: texts) that come one by one."""
    if hasattr(rows, "column_names"):
        refuse_missing(columns, rows.column_names, "the dataset")
        return rows.select_columns(columns)

    def checked() -> Iterator[Mapping[str, str]]:
        for number, row in enumerate(rows, start=1):
            whole = {columns[0]: row} if isinstance(row, str) else row
            refuse_missing(columns, whole, f"row {number}")
            yield whole

    return write_rows(checked(), columns)
