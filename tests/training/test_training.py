"""What the two stages share: a run that breaks stops cleanly; represent in each of its forms."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.errors import LBRError
from lbr_st.model.build import build_model
from lbr_st.recipe import LearnConfig, RepresentConfig
from lbr_st.training.learn import learn
from lbr_st.training.ranking import TokenBudgetRankingLoss
from lbr_st.training.represent import represent
from lbr_st.training.trainer import LBRTrainer

TERMS = ["acid", "base", "salt", "ester", "protein", "enzyme"]
QUIET = {"disable_tqdm": True, "precision": "float32"}


@pytest.fixture
def new_model(tiny_base):
    return partial(build_model, tiny_base("llama"), num_bottleneck_tokens=2, device="cpu")


@pytest.fixture(params=[{}, {"lora_rank": 2}], ids=["full", "lora"])
def model(request, new_model):
    return new_model(**request.param)


@pytest.fixture
def stage1() -> Dataset:
    return Dataset.from_dict(
        {"context": [f"query: {term}" for term in TERMS], "target": [f"the {term} of a salt" for term in TERMS]}
    )


@pytest.fixture
def stage2() -> Dataset:
    return Dataset.from_dict({"query": [f"{t} ?" for t in TERMS], "document": [f"an {t} is the {t}" for t in TERMS]})


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def finite(model) -> bool:
    return all(torch.isfinite(p).all() for p in model.parameters())


# --- learn stops before it spoils a model -----------------------------------------------------------------------------


def break_at(monkeypatch, step: int, spoil, model):
    """Spoil the loss at one step; return a list that will hold the weights just before it."""
    real = IBGenerativeLoss.forward
    calls, weights = [], []

    def forward(self, *args):
        terms = real(self, *args)
        calls.append(1)
        if len(calls) == step:
            weights.append(snapshot(model))
            terms["target"] = spoil(terms["target"])
        return terms

    monkeypatch.setattr(IBGenerativeLoss, "forward", forward)
    return weights


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda term: term + math.inf, "loss is inf"),
        (lambda term: term.register_hook(lambda gradient: gradient * math.nan) and term, "gradient norm is nan"),
    ],
)
def test_a_broken_step_stops_the_run(model, stage1, tmp_path, monkeypatch, spoil, message):
    weights = break_at(monkeypatch, 3, spoil, model)
    config = LearnConfig(max_steps=5, batch_size=2, warmup_steps=0)
    with pytest.raises(LBRError, match=message) as caught:
        learn(model, stage1, config, output_dir=tmp_path, save_strategy="steps", save_steps=1, **QUIET)
    assert caught.value.where == "step 3"
    assert "query: " in str(caught.value)
    assert any(term in str(caught.value) for term in TERMS)
    assert "lbr_" not in caught.value.what  # the texts, not what the tokenizer added

    # The weights are those before the step, and so is the last checkpoint, which the message names.
    assert finite(model)
    assert all(torch.equal(p, weights[0][name]) for name, p in model.named_parameters())
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert str(tmp_path / "checkpoint-2") in str(caught.value)


@pytest.mark.parametrize("where", ["pairs", "held_out"])
def test_learn_names_the_columns_that_it_misses(new_model, stage1, stage2, tmp_path, where):
    data = {"pairs": stage1, "held_out": stage1, where: stage2}
    with pytest.raises(LBRError, match=f"{where}: no column 'context'; there are: query, document"):
        learn(new_model(), data["pairs"], held_out=data["held_out"], output_dir=tmp_path)


def test_new_parameters_take_their_own_learning_rate(new_model, stage1, tmp_path, monkeypatch):
    model = new_model(lora_rank=2)
    trainers = []
    monkeypatch.setattr(LBRTrainer, "train", lambda self, **options: trainers.append(self))
    config = LearnConfig(bottleneck="embedding", rate_weight=0.1, learning_rate=1e-3, token_learning_rate=1e-2)
    learn(model, stage1, config, output_dir=tmp_path, **QUIET)
    groups = trainers[0].create_optimizer().param_groups
    names = {id(p): name for name, p in trainers[0].loss.named_parameters()}
    rates: dict[float, set[str]] = {}
    for group in groups:
        rates.setdefault(group["lr"], set()).update(names[id(p)] for p in group["params"])
    assert set(rates) == {1e-3, 1e-2}
    assert all("lora_" in name for name in rates[1e-3])
    for wanted in ("trainable_tokens_delta", "bridge.weight", "log_variance.bias"):
        assert any(wanted in name for name in rates[1e-2])


# --- represent --------------------------------------------------------------------------------------------------------


def spy_on(monkeypatch, kind, what) -> list[list]:
    """Return a list that will hold, for each call of a loss, ``what`` of each of its columns."""
    seen = []
    real = kind.forward

    def forward(self, sentence_features, *args, **kwargs):
        columns = list(sentence_features)
        seen.append([what(column) for column in columns])
        return real(self, columns, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", forward)
    return seen


def spy_on_texts(monkeypatch, model, kind) -> list[list[list[str]]]:
    decode = partial(model.tokenizer.batch_decode, skip_special_tokens=True)
    return spy_on(monkeypatch, kind, lambda column: decode(column["input_ids"]))


def losses_of(log) -> list[float]:
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.parametrize(
    "options",
    [{}, {"mini_batch_tokens": 20}, {"matryoshka_dims": [8, 4], "mini_batch_tokens": 20}],
    ids=["plain", "cached", "matryoshka"],
)
@pytest.mark.parametrize("negatives", [False, True], ids=["in-batch", "explicit"])
def test_represent(model, stage2, tmp_path, monkeypatch, options, negatives):
    if negatives:  # in another order than that of the columns which the loss needs
        stage2 = stage2.add_column("negative", [f"no {t}" for t in TERMS])
        stage2 = stage2.select_columns(["negative", "document", "query"])
    seen = spy_on_texts(monkeypatch, model, MatryoshkaLoss if "matryoshka_dims" in options else TokenBudgetRankingLoss)
    before = snapshot(model)
    config = RepresentConfig(max_steps=2, batch_size=4, warmup_steps=0, **options)
    losses = losses_of(represent(model, stage2, config, output_dir=tmp_path, **QUIET))
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert finite(model)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())

    assert len(seen) == len(losses) == 2
    for columns in seen:
        assert len(columns) == (3 if negatives else 2)
        query, document, *negative = columns
        assert all(text.startswith("query: ") and text.endswith("?") for text in query)
        assert all(text.startswith("document: an ") for text in document)
        assert all(text.startswith("document: no ") for column in negative for text in column)


def test_some_pairs_with_negatives(new_model, stage2, tmp_path, monkeypatch):
    model = new_model()
    seen = spy_on_texts(monkeypatch, model, TokenBudgetRankingLoss)
    negatives = {"negative": ["no acid", None, None, "no ester", "", "no enzyme"], "hard_neg_2": ["none", *[""] * 5]}
    pairs = Dataset.from_dict({**negatives, **stage2.to_dict()})
    config = RepresentConfig(max_steps=4, batch_size=2, warmup_steps=0)
    represent(model, pairs, config, output_dir=tmp_path, **QUIET)
    assert sorted(map(len, seen)) == [2, 2, 4, 4]  # two batches of each kind, of 3 rows each
    found = {rows[0]: rows[2:] for columns in seen for rows in zip(*columns, strict=True)}
    assert found == {
        "query: acid ?": ("document: no acid", "document: none"),
        "query: base ?": (),
        "query: salt ?": (),
        "query: ester ?": ("document: no ester",) * 2,  # as many as the acid has: its own, in turn
        "query: protein ?": (),
        "query: enzyme ?": ("document: no enzyme",) * 2,
    }


def test_a_negative_ends_further_away(new_model, tmp_path):
    pairs = {"query": ["an acid", "the base"], "document": ["a salt of it", "a protein"]}
    scores = []
    for given in ({}, {"negative": ["an ester", "an enzyme"]}):
        model = new_model()
        config = RepresentConfig(max_steps=6, batch_size=2, warmup_steps=0, learning_rate=1e-3)
        represent(model, Dataset.from_dict({**pairs, **given}), config, output_dir=tmp_path / str(len(given)), **QUIET)
        wrong = model.encode_document(["an ester", "an enzyme"], convert_to_tensor=True)
        queries = model.encode_query(pairs["query"], convert_to_tensor=True)
        scores.append(model.similarity_pairwise(queries, wrong))
    assert (scores[1] < scores[0] - 0.1).all()


def test_what_is_wrong_with_pairs_is_said(new_model, stage2, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("lbr_st.training.represent.notice", said.append)
    monkeypatch.setattr(LBRTrainer, "train", lambda self, **options: None)
    run = partial(represent, new_model(), output_dir=tmp_path, **QUIET)
    with pytest.raises(LBRError, match=r"pairs: no column 'document'; there are: query, positive"):
        run(stage2.rename_column("document", "positive"))
    run(stage2)
    shared = Dataset.from_dict({"query": ["?"] * len(TERMS), "document": TERMS})
    run(shared.add_column("negative", ["", "no acid", *[""] * (len(TERMS) - 2)]))
    assert not said
    run(shared)
    run(shared.rename_columns({"query": "document", "document": "query"}).add_column("negative", [""] * len(TERMS)))
    assert [line.partition(", and")[0] for line in said] == [
        "Stage 2 has nothing to tell apart: all pairs share one query",
        "Stage 2 has nothing to tell apart: all pairs share one document",
    ]


def test_two_parts_of_a_passage_are_never_each_others_negatives(model, tmp_path):
    pairs = {"query": ["dose", "mill"], "document": ["Take one tablet.", "Then rest."]}
    config = RepresentConfig(max_steps=1, batch_size=2)
    for passages, alone in ((["p0", "p1"], False), (["p0", "p0"], True), (["", ""], False)):
        options = {"output_dir": tmp_path / "-".join(passages), **QUIET}
        [loss] = losses_of(represent(model, Dataset.from_dict({**pairs, "passage": passages}), config, **options))
        assert (loss == 0) is alone  # with nothing to be told from


def test_a_matryoshka_size_must_be_smaller_than_the_embedding(model, stage2, tmp_path):
    config = RepresentConfig(max_steps=1, batch_size=4, matryoshka_dims=[10_000])
    with pytest.raises(LBRError, match="smaller than the embedding") as caught:
        represent(model, stage2, config, output_dir=tmp_path, **QUIET)
    assert caught.value.where == "represent.matryoshka_dims"


def test_temperature_divides_the_cosines(new_model, stage2, tmp_path):
    model = new_model()
    query = model.encode_query(stage2["query"], convert_to_tensor=True)
    document = model.encode_document(stage2["document"], convert_to_tensor=True)
    expected = torch.nn.functional.cross_entropy(query @ document.T / 0.2, torch.arange(len(TERMS))).item()
    config = RepresentConfig(max_steps=1, batch_size=len(TERMS), warmup_steps=0, temperature=0.2)
    log = represent(model, stage2, config, output_dir=tmp_path, **QUIET)
    assert losses_of(log)[0] == pytest.approx(expected, rel=1e-3)


def test_represent_stops_at_a_nan_too(model, stage2, tmp_path):
    trained = next(p for p in backbone_of(model).model.parameters() if p.requires_grad)
    trained.data.fill_(math.nan)
    with pytest.raises(LBRError, match=r"loss is nan(.|\n)*No checkpoint was written yet") as caught:
        represent(model, stage2, RepresentConfig(max_steps=1, batch_size=2), output_dir=tmp_path, **QUIET)
    assert caught.value.where == "step 1"
    assert "query: " in str(caught.value)


def test_no_text_is_twice_in_a_batch(new_model, tmp_path, monkeypatch):
    model = new_model()
    seen = spy_on_texts(monkeypatch, model, TokenBudgetRankingLoss)
    pairs = Dataset.from_dict({"query": [f"{i} ?" for i in range(8)], "document": ["acid", "salt"] * 4})
    represent(model, pairs, RepresentConfig(max_steps=4, batch_size=2), output_dir=tmp_path, **QUIET)
    assert seen
    for _, document in seen:
        assert len(set(document)) == len(document)


def test_similar_pairs_share_a_batch(new_model, tmp_path, monkeypatch):
    model = new_model(lora_rank=2)
    seen = spy_on_texts(monkeypatch, model, TokenBudgetRankingLoss)
    # Four pairs of each of eight letters, which differ in how often it stands there.
    rows = [(letter, times) for letter in "bdfgjkmp" for times in range(1, 5)]
    pairs = {
        "query": [f"{letter} " * times + "?" for letter, times in rows],
        "document": [f"{letter} " * times for letter, times in rows],
    }
    found = []
    for size in (1, 4):
        config = RepresentConfig(max_steps=8, batch_size=4, similar_group_size=size)
        represent(model, Dataset.from_dict(pairs), config, output_dir=tmp_path / str(size), **QUIET)
        found.append(np.mean([len({text.split()[-1] for text in documents}) for _, documents in seen]))
        seen.clear()
    assert found[0] > 2.5 > 1.5 > found[1]


# --- batches by tokens ------------------------------------------------------------------------------------------------


def test_learn_forms_batches_by_tokens(new_model, tmp_path, monkeypatch):
    model = new_model(lora_rank=2)
    seen = spy_on(monkeypatch, IBGenerativeLoss, lambda column: column["attention_mask"].sum(dim=1))
    texts = ["an acid " * count for count in (1, 2, 1, 30, 3, 2, 1, 1, 25, 2)]
    pairs = Dataset.from_dict({"context": [f"query: {text}" for text in texts], "target": texts})
    config = LearnConfig(max_steps=4, batch_size=1000, batch_tokens=120, max_target_tokens=8)
    learn(model, pairs, config, output_dir=tmp_path, **QUIET)
    assert len(seen) == 4
    sizes = [int(sum(column.sum() for column in columns)) for columns in seen]
    assert all(size <= 120 or len(columns[0]) == 1 for size, columns in zip(sizes, seen, strict=True))
    assert any(len(columns[0]) > 1 for columns in seen)
    # A target is read no further than one token beyond what is predicted, which tells that it goes on.
    assert max(int(columns[1].max()) for columns in seen) == 8 + 1 + sum(backbone_of(model).affixes)


def test_several_processes_gather_as_many_pairs_each(new_model, tmp_path, monkeypatch, stage2):
    model = new_model(lora_rank=2)
    made = []
    monkeypatch.setattr(LBRTrainer, "train", lambda self, **options: made.append(self))
    monkeypatch.setattr("lbr_st.training.represent.world_size", lambda: 2)
    represent(model, stage2, RepresentConfig(), output_dir=tmp_path, **QUIET)
    assert made[0].loss.gather_across_devices
    assert made[0].args.dataloader_drop_last
    represent(model, stage2, RepresentConfig(gather_negatives=False), output_dir=tmp_path, **QUIET)
    assert not made[1].loss.gather_across_devices


def test_a_second_run_tokenises_nothing(model, stage1, stage2, tmp_path, monkeypatch):
    def both(folder):
        options = {"cache_dir": tmp_path / "data", **QUIET}
        learn(model, stage1, LearnConfig(max_steps=1, batch_size=2), output_dir=folder / "learn", **options)
        represent(model, stage2, RepresentConfig(max_steps=1), output_dir=folder / "represent", **options)

    both(tmp_path / "a")
    assert len(list((tmp_path / "data").glob("tokens-*"))) == 2
    monkeypatch.setattr("lbr_st.training.tokens._tokenize", lambda *_, **__: pytest.fail("tokenised again"))
    both(tmp_path / "b")
