"""A user's own pairs split by entity: most to train on, a few to be asked for at the end."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lbr_st.data.beir import RetrievalSet
from lbr_st.data.lines import bytes_a_row
from lbr_st.data.texts import column_digests, digest, normalise

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

MOST_QUERIES = 200
MOST_OF_A_GROUP = 0.25
"""The largest share of the pairs that may be held out because they belong together (our choice)."""
MOST_DOCUMENTS = 50_000
MOST_BYTES = 50_000_000
"""The most documents to search, and their bytes (our choice): an evaluation is held in memory and encoded whole."""


def hold_out(pairs: Dataset, *, name: str, seed: int = 0) -> tuple[Dataset, RetrievalSet | None]:
    """Split off a tenth of the pairs, 200 queries at most, as an evaluation over all documents.

    The split is by entity: pairs that share a query or a document, however spelt, stay on one side. Where each such
    group is more than a tenth, the smallest is held out. Of more than 50,000 documents, or 50 MB, a random part is
    searched and those that answer a query.

    Returns:
        The pairs to train on, and the held-out queries with their documents and others. All pairs and None if the
        smallest group is more than a fourth of them.
    """
    import numpy as np

    held = _held(pairs, seed)
    if not len(held):
        return pairs, None
    # A document's number is its place among the different ones, in the order in which they come.
    texts, first = np.unique(column_digests(pairs, "document"), return_index=True)
    order = first.argsort(kind="stable")
    number_of = order.argsort(kind="stable")
    asked = pairs.select_columns(["query", "document"]).select(held)
    judged = number_of[texts.searchsorted(column_digests(asked, "document"))]
    # Sorted by digest the texts are in random order already.
    documents = pairs.select_columns(["document"])
    most = min(MOST_DOCUMENTS, int(MOST_BYTES // max(1.0, bytes_a_row(documents))))
    others = number_of[~np.isin(number_of, judged)][: max(0, most - len(set(judged.tolist())))]
    searched = np.union1d(judged, others)
    found = documents.select(first[order][searched])["document"]
    ids: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row, document, query in zip(held.tolist(), judged.tolist(), asked["query"], strict=True):
        qrels.setdefault(ids.setdefault(query, f"q{row}"), {})[f"d{document}"] = 1
    safe = "".join(c if c.isalnum() else "-" for c in name).strip("-") or "pairs"
    beyond = len(order) - len(searched)
    test = RetrievalSet(
        name=f"{safe}-held-out",
        corpus={f"d{number}": text for number, text in zip(searched.tolist(), found, strict=True)},
        queries={key: query for query, key in ids.items()},
        qrels=qrels,
        description="Pairs held out from training, by entity",
        left_out={"documents beyond those searched": beyond} if beyond else {},
    )
    return pairs.select(np.setdiff1d(np.arange(len(pairs)), held)), test


def _held(pairs: Dataset, seed: int) -> np.ndarray:
    """Return the rows to hold out: whole groups, in a random order, as long as they fit."""
    import numpy as np

    group = _groups([column_digests(pairs, column, normalise) for column in ("query", "document")])
    first, sizes = np.unique(group, return_counts=True)
    hashes = (hashlib.sha256(f"{seed}:{row}".encode()).digest()[:8] for row in first.tolist())
    order = np.frombuffer(b"".join(hashes), dtype=">u8").argsort(kind="stable")
    wanted = min(MOST_QUERIES, len(pairs) // 10)
    chosen: list[int] = []
    held = 0
    for row, count in zip(first[order].tolist(), sizes[order].tolist(), strict=True):
        if held + count <= wanted:
            chosen.append(row)
            held += count
    if not chosen and min(sizes) <= MOST_OF_A_GROUP * len(pairs):
        chosen = [int(first[sizes.argmin()])]
    return np.flatnonzero(np.isin(group, chosen))


def _groups(columns: list[np.ndarray]) -> np.ndarray:
    """Return the first row of each row's group: rows that share a digest, directly or along a chain.

    The digest of an empty text groups nothing.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = np.stack(columns, axis=1).ravel()  # row by row
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    first = first[number]  # for each key, the place where it stands first
    repeated = np.flatnonzero((first != np.arange(len(keys))) & (keys != digest("")))
    linked = first[repeated] // len(columns), repeated // len(columns)
    size = len(columns[0])
    graph = coo_array((np.ones(len(repeated), dtype=np.int8), linked), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    return np.unique(label, return_index=True)[1][label]
