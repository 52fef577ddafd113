"""Hard negatives are near misses, also of a model whose embeddings all point one way."""

import numpy as np
import pytest
from datasets import Dataset

from lbr_st import LBRError, build_model
from lbr_st.recipe import RepresentConfig
from lbr_st.training.ranking import TokenBudgetRankingLoss
from lbr_st.training.represent import represent, with_given_negatives, with_hard_negatives

GROUPS, EACH = 30, 4
PAIRS = Dataset.from_dict(
    {
        "query": [f"query {group} {one}" for group in range(GROUPS) for one in range(EACH)],
        "document": [f"document {group} {one}" for group in range(GROUPS) for one in range(EACH)],
    }
)


def vector(text: str, shared: float) -> np.ndarray:
    """Embed a text: its group, a little of its own, and what all texts share."""
    _, group, one = text.split()
    row = np.zeros(GROUPS + EACH + 1, dtype=np.float32)
    row[int(group)], row[GROUPS + int(one)], row[-1] = 1.0, 0.7, shared
    return row / np.linalg.norm(row)


@pytest.fixture
def model(tiny_base, monkeypatch):
    """A model that embeds by :func:`vector`; ``set_shared`` of it sets how much is common to all texts."""
    model = build_model(tiny_base("llama"), device="cpu")

    def set_shared(shared: float) -> None:
        def encode(texts, **options):
            assert options["normalize_embeddings"]
            return np.stack([vector(text, shared) for text in texts])

        monkeypatch.setattr(model, "encode_query", encode)
        monkeypatch.setattr(model, "encode_document", encode)

    model.set_shared = set_shared
    return model


@pytest.mark.parametrize(("shared", "count"), [(0.0, 1), (20.0, 2)])
def test_every_pair_has_near_misses_of_its_own_group(model, shared, count):
    """With 20 all cosines are above 0.995, as after stage 1, where a margin of 5% once left no pair at all."""
    model.set_shared(shared)
    mined = with_hard_negatives(model, PAIRS, count)
    assert mined.column_names == ["query", "document", "negative_1", "negative_2"][: 2 + count]
    assert sorted(mined["query"]) == sorted(PAIRS["query"])
    for query, document, *negatives in (row.values() for row in mined):
        assert document == query.replace("query", "document")
        assert len({document, *negatives}) == 1 + count
        assert {negative.split()[1] for negative in negatives} == {query.split()[1]}


def test_a_right_answer_far_down_has_near_misses_below_it(model, monkeypatch):
    """What ranks above it is passed over; the pair is not dropped for it."""
    model.set_shared(0.0)
    encode = model.encode_query

    def mistaken(texts, **options):
        """Take the first query of each group for the opposite of the first document of each: its own ranks 91st."""
        rows = encode(texts, **options)
        for text, row in zip(texts, rows, strict=True):
            if text.endswith(" 0"):
                row[:GROUPS] *= 0.2
                row[GROUPS:] *= -1.4
        return rows

    monkeypatch.setattr(model, "encode_query", mistaken)

    mined = with_hard_negatives(model, PAIRS, 1)
    far_down = [row for row in mined if row["query"].endswith(" 0")]
    assert len(far_down) == GROUPS
    assert all(row["negative_1"].endswith(" 0") and row["negative_1"] != row["document"] for row in far_down)


def test_given_negatives_stay_next_to_mined_ones(model):
    model.set_shared(0.0)
    [plain] = [row for row in with_hard_negatives(model, PAIRS, 2) if row["query"] == "query 0 0"]
    given = [["given", plain["negative_2"]], ["again", ""], *[["", ""]] * (len(PAIRS) - 1)]
    rows = [*PAIRS.select([0]), *PAIRS]  # the first pair twice, as in a file with a negative a row
    names = ("negative_1", "negative_2")
    pairs = Dataset.from_list([row | dict(zip(names, own, strict=True)) for row, own in zip(rows, given, strict=True)])
    found = with_given_negatives(pairs, with_hard_negatives(model, pairs, 2))
    assert len(found) == len(pairs)
    first, second, *others = ([row[f"negative_{number}"] for number in range(1, 5)] for row in found)
    # A mined text that was given counts once; who has fewer than four repeats them in turn.
    assert first == ["given", plain["negative_2"], plain["negative_1"], "given"]
    assert second == ["again", plain["negative_1"], plain["negative_2"], "again"]
    assert all(len(set(texts)) == 2 and texts[:2] == texts[2:] and "" not in texts for texts in others)


def test_a_pair_without_near_misses_stays_if_it_has_a_negative_of_its_own(model):
    model.set_shared(0.0)
    lonely = {"query": ["query 40 0", "query 41 0"], "document": ["document 0 0", "document 0 0"]}
    pairs = Dataset.from_dict({name: [*PAIRS[name], *lonely[name]] for name in PAIRS.column_names})
    pairs = pairs.add_column("negative", [""] * (len(PAIRS) + 1) + ["given"])

    def encode(texts, **options):
        """The two last queries are like nothing, and all is as unlike the first document."""
        rows = np.stack([vector(text.replace(" 40 ", " 0 ").replace(" 41 ", " 0 "), 0.0) for text in texts])
        rows[[text.split()[1] in ("40", "41") for text in texts]] *= -1
        return rows

    model.encode_query = encode
    found = with_given_negatives(pairs, with_hard_negatives(model, pairs, 1)).to_list()
    found = {query: texts for query, *texts in map(dict.values, found)}
    assert "query 40 0" not in found
    assert found["query 41 0"] == ["document 0 0", "given", "given"]


def test_more_negatives_than_documents_is_said(model):
    model.set_shared(0.0)
    with pytest.raises(LBRError, match="no query has 120 near misses"):
        with_hard_negatives(model, PAIRS, 120)


def test_stage_2_trains_with_the_negatives_that_an_untrained_model_mines(tiny_base, tmp_path, monkeypatch):
    words = [f"{a} {b}" for a in ("water", "acid", "salt", "base", "ether") for b in ("red", "blue", "hot", "cold")]
    pairs = Dataset.from_dict({"query": words, "document": words})
    columns = []
    forward = TokenBudgetRankingLoss.forward
    monkeypatch.setattr(
        TokenBudgetRankingLoss,
        "forward",
        lambda self, features, *rest: columns.append(len(features)) or forward(self, features, *rest),
    )

    model = build_model(tiny_base("llama"), device="cpu")
    config = RepresentConfig(num_hard_negatives=2, max_steps=2, batch_size=4, warmup_steps=0)
    log = represent(model, pairs, config, output_dir=tmp_path, logging_steps=1)

    assert columns == [4, 4]  # query, document and two negatives
    assert all(0 < float(step["loss"]) < 10 for step in log if "loss" in step)
