"""The baselines: both stages without a bottleneck, and their recipes."""

import numpy as np
import pytest
from datasets import Dataset
from no_bottleneck import PAIRS, QUIET, causal_lm_loss, new_model
from sentence_transformers import SentenceTransformer
from tiny_models import encode

from lbr_st import pipeline
from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.bottleneck.rows import targets_of
from lbr_st.data.pairs import mix, natural_pairs, reconstruct_pairs
from lbr_st.errors import LBRError
from lbr_st.model.load import load_model
from lbr_st.publish.stock import release
from lbr_st.recipe import BASELINES, LearnConfig, Recipe, RepresentConfig, baseline, load_recipe
from lbr_st.training.learn import generative_pairs, learn
from lbr_st.training.represent import represent

# --- both stages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("k", [0, 2])
def test_learn_without_a_bottleneck_logs_the_held_out_loss_and_no_gain(tiny_base, tmp_path, k, options):
    model = new_model(tiny_base("llama"), k, **options)
    pairs = Dataset.from_dict({"context": [*PAIRS["context"], "an acid"], "target": [*PAIRS["target"], ""]})
    config = LearnConfig(
        bottleneck="none", context_weight=1.0, max_steps=20, batch_size=7, warmup_steps=0, eval_steps=10
    )
    log = learn(model, pairs, config, held_out=pairs, output_dir=tmp_path, **QUIET)
    assert not any("gain" in key for row in log for key in row)
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert losses[-1] < losses[0] - 0.02
    expected = causal_lm_loss(model.eval(), pairs["context"], pairs["target"]).item()
    assert losses[-1] == pytest.approx(expected, rel=1e-4)
    assert {"target", "context"} <= set().union(*log)


def test_the_pairs_come_in_the_same_order_with_and_without_a_bottleneck(tiny_base, tmp_path, monkeypatch):
    real, seen = IBGenerativeLoss.predictions, {}

    def predictions(self, features):
        backbone = backbone_of(self.model)
        real_ids = zip(features[0]["input_ids"], features[0]["attention_mask"].bool(), strict=True)
        closing = len(backbone.closing_ids)
        texts = [backbone.tokenizer.decode(ids[mask][:-closing]) for ids, mask in real_ids]
        seen.setdefault(self.bottleneck, []).append(texts)
        return real(self, features)

    monkeypatch.setattr(IBGenerativeLoss, "predictions", predictions)
    for bottleneck, k in [("attention", 2), ("none", 0)]:
        config = LearnConfig(bottleneck=bottleneck, max_steps=4, batch_size=2, eval_steps=9)
        model = new_model(tiny_base("llama"), k, lora_rank=2)
        learn(model, Dataset.from_dict(PAIRS), config, output_dir=tmp_path / bottleneck, seed=3, **QUIET)
    assert len(seen["none"]) == 4
    assert seen["none"] == seen["attention"]


def mixed_pairs() -> Dataset:
    natural = natural_pairs([{"query": "an acid", "document": "the acid, an acid"}], prompt="query: ")
    return mix([natural, reconstruct_pairs(["an acid", "x"], "document: ")])


def test_a_text_to_reconstruct_stands_in_its_row_once_where_it_would_be_in_sight():
    found = generative_pairs(mixed_pairs(), "none", ["query: ", None, "document: "])
    assert sorted(zip(found["context"], found["target"], strict=True)) == [
        ("document: an acid", ""),
        ("document: x", ""),
        ("query: an acid", "the acid, an acid"),
    ]
    assert generative_pairs(mixed_pairs(), "attention", ["document: "]).to_dict() == mixed_pairs().to_dict()
    # It is the same text that counts, not the same ending.
    ending = Dataset.from_dict({"context": ["document: a salt", "salt"], "target": ["salt", "salt"]})
    assert generative_pairs(ending, "none", ["document: "])["target"] == ["salt", ""]


@pytest.mark.parametrize("bottleneck", ["attention", "none"])
def test_a_text_to_reconstruct_is_shown_once(tiny_base, tmp_path, monkeypatch, bottleneck):
    real, seen = IBGenerativeLoss.predictions, set()

    def predictions(self, features):
        backbone = backbone_of(self.model)
        found = targets_of(backbone, features[1], contexts=features[0])
        for ids, keep in zip(found.tokens, found.keep, strict=True):
            seen.add(backbone.tokenizer.decode(ids[keep], skip_special_tokens=True))
        return real(self, features)

    monkeypatch.setattr(IBGenerativeLoss, "predictions", predictions)
    config = LearnConfig(bottleneck=bottleneck, max_steps=1, batch_size=3, warmup_steps=0)
    expected = {"the acid, an acid", ""} if bottleneck == "none" else {"the acid, an acid", "an acid", "x"}
    model = new_model(tiny_base("llama"), 2, lora_rank=2)
    learn(model, mixed_pairs(), config, output_dir=tmp_path / "learn", **QUIET)
    assert seen == expected


@pytest.mark.parametrize("k", [0, 2])
def test_represent_without_a_bottleneck(tiny_base, tmp_path, k):
    model = new_model(tiny_base("llama"), k, lora_rank=2)
    before = encode(model)
    pairs = Dataset.from_dict({"query": [f"{x} ?" for x in "abcdef"], "document": [f"an {x}" for x in "abcdef"]})
    config = RepresentConfig(max_steps=6, batch_size=2, warmup_steps=0, learning_rate=1e-2)
    represent(model, pairs, config, output_dir=tmp_path / "represent", **QUIET)
    after = encode(model.eval())
    assert (after - before).abs().max() > 1e-3
    release(model, tmp_path / "released")


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_runs_from_data_to_release(tiny_base, toy_recipe, tmp_path, name):
    recipe = load_recipe(toy_recipe)
    recipe.model.base, recipe.learn.target_dropout = tiny_base("llama", pad=False), 0.0
    pipeline.run(baseline(recipe, name), tmp_path / "out")
    assert (tmp_path / "out-work" / "learn").is_dir() == (name == "causal-lm")
    stock = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    trained = load_model(tmp_path / "out-work" / "represent", device="cpu")
    np.testing.assert_allclose(stock.encode_query(["acid 3"]), trained.encode_query(["acid 3"]), atol=1e-5)
    # What is pooled is the recipe's own last token, in the baseline as in what it is compared with.
    assert stock.tokenizer("acid 3")["input_ids"][-1] == stock.tokenizer.convert_tokens_to_ids("<|lbr_3|>")
    assert load_recipe(tmp_path / "out" / "recipe.yaml").name == f"lbr-toy-{name}"


# --- the recipes ------------------------------------------------------------------------------------------------------


def differences(first: Recipe, second: Recipe) -> dict[str, object]:
    return {key: value for key, value in second.flat().items() if value != first.flat()[key]}


@pytest.mark.parametrize(
    "options", [{}, {"rate_weight": 0.1, "target_dropout": 0.2, "bag_weight": 0.4, "distil_weight": 0.3}]
)
def test_a_baseline_differs_in_nothing_but_what_it_must(options):
    def new():
        return Recipe(name="chem", seed=7, learn=LearnConfig(bottleneck="embedding", **options))

    recipe = new()
    assert differences(recipe, baseline(recipe, "contrastive-only")) == {
        "name": "chem-contrastive-only",
        "learn.enabled": False,
    }
    assert differences(recipe, baseline(recipe, "causal-lm")) == {
        "name": "chem-causal-lm",
        "learn.bottleneck": "none",
        "learn.context_weight": 1.0,
        **{f"learn.{name}": 0.0 for name in options},  # only a bottleneck has these
    }
    assert recipe == new()


@pytest.mark.parametrize(
    ("recipe", "name", "message"),
    [
        (Recipe(), "causal_lm", "Did you mean causal-lm"),
        (Recipe(), "zzz", "Choose contrastive-only or causal-lm"),
        (Recipe(represent=RepresentConfig(enabled=False)), "contrastive-only", "needs the stage represent"),
        (Recipe(learn=LearnConfig(enabled=False)), "causal-lm", "needs the stage learn"),
    ],
)
def test_baselines_that_make_no_sense(recipe, name, message):
    with pytest.raises(LBRError, match=message):
        baseline(recipe, name)
