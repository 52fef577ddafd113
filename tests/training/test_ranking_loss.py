"""TokenBudgetRankingLoss. Invariants:

1. Loss and gradients are those of MultipleNegativesRankingLoss, whole or in pieces, with explicit negatives or not.
2. No piece that is embedded with gradients has more tokens than the budget, but for a single longer text.
3. With Matryoshka sizes, loss and gradients are those of Sentence Transformers' own, whole or in pieces.
4. A batch within the budget is embedded in one pass where that costs no padding, and queries apart elsewhere.
"""

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from tiny_models import assert_same, loss_and_gradients

from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.build import build_model
from lbr_st.training.ranking import TokenBudgetRankingLoss

QUERIES = ["an acid", "the base", "a salt of it", "x", "an ester and a protein", "enzyme"]
DOCUMENTS = ["the acid of a salt " * 4, "base", "an ester", "a protein and an enzyme", "the ester", "an acid"]
NEGATIVES = ["no acid", "no base at all", "none", "y", "an ester of none", "z"]


@pytest.fixture
def model(tiny_base):
    return build_model(tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")


def features(model, negatives: bool):
    columns = [QUERIES, DOCUMENTS, *([NEGATIVES] if negatives else [])]
    return [model.preprocess(column) for column in columns]


@pytest.mark.parametrize("negatives", [False, True], ids=["in-batch", "explicit"])
@pytest.mark.parametrize("budget", [1, 30, 100_000], ids=["one by one", "pieces", "whole"])
def test_loss_and_gradients_are_those_of_the_plain_loss(model, budget, negatives):
    wanted, gradients = loss_and_gradients(
        MultipleNegativesRankingLoss(model, scale=5.0), model, features(model, negatives)
    )
    loss = TokenBudgetRankingLoss(model, scale=5.0, mini_batch_num_tokens=budget)
    assert_same(loss_and_gradients(loss, model, features(model, negatives)), (wanted, gradients))


@pytest.mark.parametrize("budget", [1, 30, 100_000], ids=["one by one", "pieces", "whole"])
def test_matryoshka_is_that_of_the_plain_loss_however_a_batch_is_run(model, budget):
    size = model.get_embedding_dimension()
    plain = MultipleNegativesRankingLoss(model, scale=5.0)
    whole, _ = loss_and_gradients(plain, model, features(model, negatives=False))
    wanted, gradients = loss_and_gradients(
        MatryoshkaLoss(model, plain, [size, 8, 4]), model, features(model, negatives=False)
    )
    loss = TokenBudgetRankingLoss(model, scale=5.0, mini_batch_num_tokens=budget).matryoshka([size, 8, 4])
    found = loss_and_gradients(loss, model, features(model, negatives=False))
    assert found[0] > 1.5 * whole  # three sizes' losses, not the whole one's alone
    assert_same(found, (wanted, gradients))


@pytest.mark.parametrize("dims", [None, [8, 4]], ids=["plain", "Matryoshka"])
def test_a_whole_batch_is_one_pass_where_padding_is_free(model, monkeypatch, dims):
    sizes = []
    real = CausalBackbone.forward
    monkeypatch.setattr(
        CausalBackbone, "forward", lambda self, batch: sizes.append(len(batch["input_ids"])) or real(self, batch)
    )
    loss = TokenBudgetRankingLoss(model)
    loss_and_gradients(
        loss.matryoshka([model.get_embedding_dimension(), *dims]) if dims else loss, model, features(model, True)
    )
    assert sizes == [len(QUERIES) + len(DOCUMENTS) + len(NEGATIVES)]
    sizes.clear()
    monkeypatch.setattr(CausalBackbone, "packs_on", lambda self, device: False)  # as on a GPU
    loss_and_gradients(loss, model, features(model, True))
    assert sizes[0] == len(QUERIES)  # and then Sentence Transformers' own way


@pytest.mark.parametrize("budget", [30, 100_000])
def test_no_piece_has_more_tokens_than_the_budget(model, monkeypatch, budget):
    columns = features(model, negatives=True)
    pieces: list[tuple[int, int]] = []
    real = CausalBackbone.forward

    def forward(self, batch, **options):
        if torch.is_grad_enabled():
            mask = batch["attention_mask"]
            pieces.append((int(mask.sum()), len(mask)))
        return real(self, batch, **options)

    monkeypatch.setattr(CausalBackbone, "forward", forward)
    loss_and_gradients(TokenBudgetRankingLoss(model, mini_batch_num_tokens=budget), model, columns)
    assert all(tokens <= budget or rows == 1 for tokens, rows in pieces)
    longest = int(columns[1]["attention_mask"].sum(dim=1).max())
    assert longest > 30  # so that a text of its own is among them
    total = sum(int(column["attention_mask"].sum()) for column in columns)
    # Every text once with gradients; all in one go where they fit, and then only once at all.
    assert sum(tokens for tokens, _ in pieces) == total
    assert len(pieces) == (1 if budget > 30 else len(pieces))
    assert budget > 30 or len(pieces) > 3
