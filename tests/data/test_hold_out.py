"""Pairs held out by entity: the same ones as the plain algorithm on the texts themselves holds out."""

from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lbr_st.data import hold_out as module
from lbr_st.data import lines
from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.data.hold_out import hold_out
from lbr_st.data.texts import normalise


def groups_of(pairs):
    """Return the rows that share a text, directly or along a chain: first row → all."""
    groups = []
    for row, pair in enumerate(pairs):
        own = {normalise(pair["query"]), normalise(pair["document"])} - {""}
        linked = [group for group in groups if group[1] & own]
        rows = sorted([row, *(one for group in linked for one in group[0])])
        groups = [group for group in groups if group not in linked] + [(rows, own.union(*(g[1] for g in linked)))]
    return {str(rows[0]): rows for rows, _ in groups}


def plainly(pairs, seed):
    """Hold out with every text in memory."""
    groups = groups_of(pairs)
    wanted = min(200, len(pairs) // 10)
    held = set()
    for first in stable_order(groups, seed):
        if len(held) + len(groups[first]) <= wanted:
            held.update(groups[first])
    smallest = min(groups, key=lambda first: (len(groups[first]), int(first)))
    if not held and 4 * len(groups[smallest]) <= len(pairs):
        held.update(groups[smallest])
    documents = {text: f"d{row}" for row, text in enumerate(dict.fromkeys(pairs["document"]))}
    queries, qrels, ids = {}, {}, {}
    for row, pair in enumerate(pairs):
        if row in held:
            query = ids.setdefault(pair["query"], f"q{row}")
            queries[query] = pair["query"]
            qrels.setdefault(query, {})[documents[pair["document"]]] = 1
    if not queries:
        return range(len(pairs)), None
    corpus = {identifier: text for text, identifier in documents.items()}
    test = RetrievalSet("x-held-out", corpus, queries, qrels, "Pairs held out from training, by entity")
    return [row for row in range(len(pairs)) if row not in held], test


# Few different texts make chains; some differ in spelling only, or hold no letter.
texts = st.builds(
    "{}{}".format, st.sampled_from(["", "a", "A", "b ", "c", "d-", "é"]), st.sampled_from(["", "!", "1", "22", "3"])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=120), st.booleans(), st.integers(0, 3))
def test_the_same_as_with_all_texts_in_memory(rows, numbered, seed):
    pairs = Dataset.from_dict(
        {
            "query": [f"{query}{row // 3 if numbered else ''}" for row, (query, _) in enumerate(rows)],
            "document": [f"{document}{row // 2 if numbered else ''}" for row, (_, document) in enumerate(rows)],
        }
    )
    kept, test = plainly(pairs, seed)
    train, found = hold_out(pairs, name="x", seed=seed)
    assert train[:] == pairs.select(kept)[:]
    assert found == test
    assert test is None or list(found.corpus) == list(test.corpus)


def test_a_large_corpus_is_cut_but_never_a_judged_document(monkeypatch):
    pairs = Dataset.from_dict({"query": [f"q{n}" for n in range(100)], "document": [f"d{n}" for n in range(100)]})
    whole_train, whole = hold_out(pairs, name="x")
    monkeypatch.setattr(module, "MOST_DOCUMENTS", 30)
    train, part = hold_out(pairs, name="x")
    assert (len(part.corpus), part.queries, part.qrels) == (30, whole.queries, whole.qrels)
    assert part.corpus.items() < whole.corpus.items()
    assert part.skipped == {"documents beyond those searched": 70}
    assert whole.skipped == {}
    monkeypatch.setattr(module, "MOST_BYTES", 7 * lines.bytes_a_row(pairs.select_columns(["document"])) * 1.01)
    assert len(hold_out(pairs, name="x")[1].corpus) == 10  # those judged
    assert train[:] == whole_train[:]
