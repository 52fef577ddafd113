"""The baselines: models without bottleneck tokens, learning without a bottleneck, and the recipes of both."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.loss.loss_utils import ForCausalLMLoss

from lbr_st import pipeline
from lbr_st.adapters import TRAINED_ROWS
from lbr_st.attention import Segment
from lbr_st.baselines import BASELINES, baseline
from lbr_st.bottleneck import backbone_of, pooler_of, trained_bottleneck
from lbr_st.build import build_model, load_model
from lbr_st.data import mix, natural_pairs, reconstruct_pairs
from lbr_st.errors import LBRError
from lbr_st.losses import IBGenerativeLoss
from lbr_st.recipe import Recipe, load_recipe, save_recipe
from lbr_st.recipe_sections import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, RepresentConfig
from lbr_st.rows import IGNORE, assemble, targets_of
from lbr_st.stages.learn import learn
from lbr_st.stages.reconstruct import reconstruct
from lbr_st.stages.release import release
from lbr_st.stages.represent import represent
from lbr_st.stages.training import generative_pairs, training_arguments
from lbr_st.token_nll import nll_each

TEXTS = ["query: an acid", "document: the base of a salt and an ester, a protein", "x"]
CONTEXTS = ["query: an acid", "document: the base of a salt and an ester", "x", "document: an enzyme, whole"]
TARGETS = ["a protein and an enzyme of the acid", "salt", "the base, an ester", ""]
PAIRS = {"context": [f"query: {x}" for x in "abcdef"], "target": [f"the {x} of a salt" for x in "abcdef"]}
QUIET = {"show_progress_bar": False, "precision": "float32"}


def new_model(base: str, k: int = 0, **options) -> SentenceTransformer:
    return build_model(base, num_bottleneck_tokens=k, device="cpu", **options).eval()


def altered(base: str, folder: Path, *, eos_pads: bool = False, eos_appended: bool = False) -> str:
    """Copy a base; let its end-of-text token pad, as SmolLM2's does, or its own tokenizer append it."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    if eos_pads:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.eos_token_id
    if eos_appended:
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> <s> $B </s>", special_tokens=special
        )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["plain", "no bos", "no pad", "eos pads", "eos appended"])
def base(request, tiny_base, tmp_path):
    kind = request.param
    if kind.startswith("eos"):
        name = kind.replace(" ", "_")
        return altered(tiny_base("llama"), tmp_path / "base", **{name: True})
    return tiny_base("llama", bos=kind != "no bos", pad=kind != "no pad")


@torch.no_grad()
def encode(model, texts=TEXTS) -> torch.Tensor:
    return model.encode(texts, convert_to_tensor=True, show_progress_bar=False)


def columns(model, contexts=CONTEXTS, targets=TARGETS):
    return [model.preprocess(list(contexts)), model.preprocess(list(targets))]


def own_ids(model, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


# --- a model without bottleneck tokens --------------------------------------------------------------------------------


def test_every_text_ends_with_end_of_text_once(base):
    model, plain = new_model(base), AutoTokenizer.from_pretrained(base)
    backbone = backbone_of(model)
    assert backbone.bottleneck_ids == []
    assert backbone.closing_ids == [plain.eos_token_id]
    assert backbone.affixes == (int(plain("a")["input_ids"][0] == plain.bos_token_id), 1)
    for text in TEXTS:
        before = plain(text)["input_ids"]
        assert model.tokenizer(text)["input_ids"] == [*[i for i in before if i != plain.eos_token_id], 2]
    assert len(model.tokenizer) == len(plain)
    assert backbone.model.config.vocab_size == AutoModelForCausalLM.from_pretrained(base).config.vocab_size


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_embedding_is_the_state_of_the_appended_token(base, side):
    model = new_model(base)
    model.tokenizer.padding_side = side
    assert model.preprocess(TEXTS)["attention_mask"].min() == 0
    lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    bos = [1] * backbone_of(model).affixes[0]
    for text, found in zip(TEXTS, encode(model), strict=True):
        ids = torch.tensor([[*bos, *own_ids(model, text), lm.config.eos_token_id]])
        with torch.no_grad():
            states = lm.base_model(input_ids=ids).last_hidden_state[0]
        unit = states / states.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found, unit[-1], rtol=0, atol=1e-5)
        assert (found - unit[-2]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_does_not_matter_where_end_of_text_pads(tiny_base, tmp_path, kind):
    model = new_model(altered(tiny_base(kind), tmp_path / "base", eos_pads=True))
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    alone = torch.cat([encode(model, [text]) for text in TEXTS])
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        torch.testing.assert_close(encode(model), alone, rtol=0, atol=1e-6)
    assert (alone @ alone.T).fill_diagonal_(0).max() < 0.999  # the texts are told apart


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_the_appended_token(base, side):
    model = new_model(base, max_seq_length=10)
    model.tokenizer.padding_side = side
    features = model.preprocess(["an acid of a base and a salt " * 20, "x"])
    assert features["input_ids"].shape[1] == 10
    for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist().count(2) == 1
        assert ids[mask.bool()][-1] == 2


def test_no_room_beside_the_appended_token(tiny_base):
    with pytest.raises(LBRError, match="no room beside 1"):
        new_model(tiny_base("llama"), max_seq_length=1)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gemma2", "gpt-neox"])
def test_the_appended_tokens_row_is_trained_where_it_pads_too(tiny_base, tmp_path, kind, options):
    model = new_model(altered(tiny_base(kind), tmp_path / "base", eos_pads=True), **options)
    model.save_pretrained(str(tmp_path / "training"))
    for each in (model, load_model(tmp_path / "training", device="cpu")):
        backbone = backbone_of(each)
        eos, table = 2, backbone.embed(torch.arange(len(each.tokenizer))).detach().clone()
        features = each.preprocess(TEXTS)
        trained = [p for p in each.parameters() if p.requires_grad]
        # Only through the embedding: no head, whose row is the same where it is tied.
        each(features)["sentence_embedding"][:, 0].sum().backward()
        torch.optim.SGD(trained, lr=1.0).step()
        moved = (backbone.embed(torch.arange(len(each.tokenizer))) != table).any(dim=1)
        assert moved[eos]
        assert not options or moved.sum() == 1  # with LoRA, that row alone
    if options:
        rows = [p for name, p in model.named_parameters() if TRAINED_ROWS in name and p.requires_grad]
        assert {tuple(p.shape) for p in rows} == {(1, 32)}


@pytest.mark.parametrize("k", [0, 2])
def test_only_rows_that_are_new_take_the_larger_rate(tiny_base, tmp_path, k):
    model = new_model(tiny_base("llama"), k, lora_rank=2)
    loss = IBGenerativeLoss(model, bottleneck="none")
    found = training_arguments(model, loss, tmp_path, LearnConfig(), evaluate=False).learning_rate_mapping
    assert list(found.values()) == ([LearnConfig().token_learning_rate] if k else [])


# --- release ----------------------------------------------------------------------------------------------------------


def perturbed(base, **options):
    model = new_model(base, max_seq_length=24, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def encodings(model):
    return np.concatenate([model.encode_query(TEXTS), model.encode_document([text * 30 for text in TEXTS])])


@pytest.mark.parametrize("options", [{"lora_rank": 4, "projection_dim": 8}, {}], ids=["lora", "full"])
def test_training_reloaded_and_released_models_agree(base, tmp_path, options):
    model = perturbed(base, **options)
    expected = encodings(model)
    model.save_pretrained(str(tmp_path / "training"))
    reloaded = load_model(tmp_path / "training", device="cpu")
    assert backbone_of(reloaded).closing_ids == [2]
    np.testing.assert_allclose(encodings(reloaded), expected, atol=1e-6)
    release(model, tmp_path / "released")
    stock = SentenceTransformer(str(tmp_path / "released"), device="cpu")
    np.testing.assert_allclose(encodings(stock), expected, atol=1e-5)
    assert stock.preprocess([TEXTS[1] * 30])["input_ids"][0].tolist().count(2) == 1


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_is_released_from_its_adapter_alone(tiny_base, tmp_path, kind):
    base = altered(tiny_base(kind), tmp_path / "base", eos_pads=True)
    model = perturbed(base, lora_rank=4)
    release(model, tmp_path / "released")
    release(model, tmp_path / "adapter", adapter_only=True)
    release(tmp_path / "adapter", tmp_path / "rebuilt", base=base)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("released", "rebuilt"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    stock = SentenceTransformer(str(tmp_path / "rebuilt"), device="cpu")
    np.testing.assert_allclose(encodings(stock), encodings(model), atol=1e-5)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tuple(t.shape) for name, t in adapter.items() if "embed" in name} == {(1, 32)}


# --- learning without a bottleneck ------------------------------------------------------------------------------------


def causal_lm_loss(model, contexts, targets, *, silent_context: bool = False) -> torch.Tensor:
    """transformers' own loss on each row, padded on the right: what its Trainer would minimise."""
    backbone = backbone_of(model)
    k, eos, rows, labels = len(backbone.bottleneck_ids), 2, [], []  # the k tokens do not come in
    for context, target in zip(contexts, targets, strict=True):
        c = model.tokenizer(context)["input_ids"][: -max(k, 1)]
        end = [*own_ids(model, target), eos]
        rows.append(torch.tensor([*c, *end]))
        labels.append(torch.tensor([*([IGNORE] * len(c) if silent_context else c), *end]))
    pad = torch.nn.utils.rnn.pad_sequence
    ids, labels = pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORE)
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    logits = backbone.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logits[..., backbone.bottleneck_ids] = -torch.inf  # tokens that no text holds
    return ForCausalLMLoss(logits, labels, vocab_size=logits.shape[-1])


@torch.no_grad()
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_loss_is_that_of_transformers(tiny_base, kind, k):
    model = new_model(tiny_base(kind), k)
    terms = IBGenerativeLoss(model, bottleneck="none", context_weight=1.0)(columns(model))
    assert set(terms) == {"target", "context"}
    expected = causal_lm_loss(model, CONTEXTS, TARGETS)
    torch.testing.assert_close(terms["target"] + terms["context"], expected, rtol=1e-5, atol=1e-5)
    terms = IBGenerativeLoss(model, bottleneck="none", context_weight=0.0)(columns(model))
    assert set(terms) == {"target"}
    expected = causal_lm_loss(model, CONTEXTS, TARGETS, silent_context=True)
    torch.testing.assert_close(terms["target"], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["full", "lora"])
def test_the_loss_is_that_of_transformers_for_every_base(base, options):
    model = new_model(base, **options)
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        terms = IBGenerativeLoss(model, bottleneck="none", context_weight=1.0)(columns(model))
        expected = causal_lm_loss(model, CONTEXTS, TARGETS)
        torch.testing.assert_close(sum(terms.values()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_context_token_weighs_context_weight(tiny_base):
    model = new_model(tiny_base("llama"))
    loss = IBGenerativeLoss(model, bottleneck="none", context_weight=0.25)
    context, target, rate = loss.predictions(columns(model))
    assert rate is None
    head = backbone_of(model).head
    of_target, of_context = (
        nll_each(*one.of(segment), head) for one, segment in ((target, Segment.TARGET), (context, Segment.CONTEXT))
    )
    nll = torch.cat([of_target, of_context])
    weights = torch.cat([torch.ones(len(of_target)), torch.full((len(of_context),), 0.25)])
    torch.testing.assert_close(sum(loss(columns(model)).values()), (nll * weights).sum() / weights.sum())


def rows_of(model, contexts, targets, **options):
    context, target = columns(model, contexts, targets)
    backbone = backbone_of(model)
    found = targets_of(backbone, target, **options, contexts=context)
    return assemble(backbone, context, found, bottleneck=False, packed=False)


def test_a_row_is_context_target_end_of_text(tiny_base):
    model = new_model(tiny_base("llama"))
    c, t = own_ids(model, CONTEXTS[0]), own_ids(model, TARGETS[0])
    rows = rows_of(model, CONTEXTS[:1], TARGETS[:1])
    assert rows.input_ids[0].tolist() == [1, *c, *t]
    assert rows.labels[0].tolist() == [*c, *t, 2]
    assert rows.predicts[0].tolist() == [Segment.CONTEXT] * len(c) + [Segment.TARGET] * (len(t) + 1)


def test_what_is_cut_is_not_followed_by_end_of_text(tiny_base):
    model = new_model(tiny_base("llama"), max_seq_length=8)
    long = "an acid of a base and a salt"
    c, t = own_ids(model, long)[:6], own_ids(model, long)[:3]
    rows = rows_of(model, ["x", long, "x"], [long, "", "y"], max_tokens=3)
    x, y = own_ids(model, "x"), own_ids(model, "y")
    assert rows.labels[0][rows.labels[0] != IGNORE].tolist() == [*x, *t]
    assert rows.labels[1][rows.labels[1] != IGNORE].tolist() == c  # the text goes on beyond what was read
    assert rows.labels[2][rows.labels[2] != IGNORE].tolist() == [*x, *y, 2]
    assert (rows.predicts == Segment.TARGET).sum(dim=1).tolist() == [3, 0, 2]


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_a_batch_without_a_target_token_is_no_nan(tiny_base, weight):
    model = new_model(tiny_base("llama"), max_seq_length=8)
    terms = IBGenerativeLoss(model, bottleneck="none", context_weight=weight)(columns(model, ["an acid " * 9], [""]))
    assert terms["target"] == 0
    assert all(torch.isfinite(term) for term in terms.values())
    if weight:  # a mean of context tokens alone is the same whatever they weigh
        full = IBGenerativeLoss(model, bottleneck="none", context_weight=1.0)(columns(model, ["an acid " * 9], [""]))
        torch.testing.assert_close(terms["context"], full["context"])


def test_an_empty_target_needs_no_bottleneck_and_a_context_is_never_empty(tiny_base):
    model = new_model(tiny_base("llama"), 2)
    with pytest.raises(LBRError, match="target is empty"):
        IBGenerativeLoss(model)(columns(model, ["x"], [""]))
    for each in (model, new_model(tiny_base("llama"))):
        with pytest.raises(LBRError, match="context is empty"):
            IBGenerativeLoss(each, bottleneck="none")(columns(each, [""], ["x"]))


def test_the_targets_loss_reaches_the_contexts_tokens(tiny_base):
    model = new_model(tiny_base("llama-untied"))
    loss = IBGenerativeLoss(model, bottleneck="none", context_weight=0.0)
    loss(columns(model, ["an acid"], ["of salt"]))["target"].backward()
    reached = backbone_of(model).model.get_input_embeddings().weight.grad.abs().sum(dim=1).nonzero().flatten()
    assert set(reached.tolist()) == {1, *own_ids(model, "an acid"), *own_ids(model, "of salt")}


def test_a_model_without_bottleneck_tokens_has_nothing_to_decode_from(tiny_base):
    model = new_model(tiny_base("llama"))
    assert trained_bottleneck(model) == "none"
    for bottleneck in ("attention", "embedding"):
        with pytest.raises(LBRError, match="no bottleneck"):
            IBGenerativeLoss(model, bottleneck=bottleneck)
        assert pooler_of(model).bridge is None
    with pytest.raises(LBRError, match="no bottleneck"):
        reconstruct(model, ["an acid"])


@pytest.mark.parametrize("options", [{"target_dropout": 0.1}, {"rate_weight": 0.1}, {"bag_weight": 0.1}])
def test_options_of_a_bottleneck_are_refused_without_one(tiny_base, options):
    with pytest.raises(LBRError, match=next(iter(options))):
        IBGenerativeLoss(new_model(tiny_base("llama"), 2), bottleneck="none", **options)


def test_a_context_of_another_model_is_refused(tiny_base):
    other = new_model(tiny_base("llama"), 2)
    model = new_model(tiny_base("llama"))
    with pytest.raises(LBRError, match="does not end with the end-of-text token"):
        IBGenerativeLoss(model, bottleneck="none")([other.preprocess(["x"]), model.preprocess(["y"])])


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
    return mix({"natural": (natural, 1.0), "reconstruct": (reconstruct_pairs(["an acid", "x"], "document: "), 1.0)})


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
def test_both_stages_show_a_text_to_reconstruct_once(tiny_base, tmp_path, monkeypatch, bottleneck):
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
    seen.clear()
    pairs = Dataset.from_dict({"query": ["a", "b", "c"], "document": ["an a", "a b", "a c"]})
    represent(
        model,
        pairs,
        RepresentConfig(max_steps=4, batch_size=3, warmup_steps=0, replay_weight=0.5),
        replay=mixed_pairs(),
        replay_config=config,
        output_dir=tmp_path / "represent",
        **QUIET,
    )
    assert seen == expected


@pytest.mark.parametrize("k", [0, 2])
def test_represent_without_a_bottleneck_and_with_replay(tiny_base, tmp_path, monkeypatch, k):
    model = new_model(tiny_base("llama"), k, lora_rank=2)
    real, used = IBGenerativeLoss.predictions, []
    monkeypatch.setattr(
        IBGenerativeLoss, "predictions", lambda self, given: used.append(self.bottleneck) or real(self, given)
    )
    before = encode(model)
    pairs = Dataset.from_dict({"query": [f"{x} ?" for x in "abcdef"], "document": [f"an {x}" for x in "abcdef"]})
    config = RepresentConfig(max_steps=6, batch_size=2, warmup_steps=0, replay_weight=0.5, learning_rate=1e-2)
    represent(
        model,
        pairs,
        config,
        replay=Dataset.from_dict(PAIRS),
        replay_config=LearnConfig(bottleneck="none"),
        output_dir=tmp_path / "represent",
        **QUIET,
    )
    assert set(used) == {"none"}
    after = encode(model.eval())
    assert (after - before).abs().max() > 1e-3
    release(model, tmp_path / "released")


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_runs_from_data_to_release(tiny_base, tmp_path, name):
    rows = [
        {"query": f"acid {i}", "document": f"the acid {i} is a salt of {i * 7}. It is an ester."} for i in range(12)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    recipe = Recipe(
        precision="float32",
        model=ModelConfig(base=tiny_base("llama", pad=False), max_seq_length=48, lora_rank=4),
        data=DataConfig(source=str(source)),
        learn=LearnConfig(max_steps=3, batch_size=4, eval_steps=3, num_eval_pairs=4),
        represent=RepresentConfig(max_steps=3, batch_size=4),
        evaluate=EvaluateConfig(enabled=False),
    )
    pipeline.run(baseline(recipe, name), tmp_path / "out")
    assert (tmp_path / "out-work" / "learn").is_dir() == (name == "causal-lm")
    stock = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    trained = load_model(tmp_path / "out-work" / "represent", device="cpu")
    np.testing.assert_allclose(stock.encode_query(["acid 3"]), trained.encode_query(["acid 3"]), atol=1e-5)
    # What is pooled is the recipe's own last token, in the baseline as in what it is compared with.
    assert stock.tokenizer("acid 3")["input_ids"][-1] == stock.tokenizer.convert_tokens_to_ids("<|lbr_3|>")
    assert load_recipe(tmp_path / "out" / "recipe.yaml").name == f"lbr-model-{name}"


# --- the recipes ------------------------------------------------------------------------------------------------------


def differences(first: Recipe, second: Recipe) -> dict[str, object]:
    return {key: value for key, value in second.flat().items() if value != first.flat()[key]}


def test_a_baseline_differs_in_nothing_but_what_it_must():
    recipe = Recipe(name="chem", seed=7)
    assert differences(recipe, baseline(recipe, "contrastive-only")) == {
        "name": "chem-contrastive-only",
        "learn.enabled": False,
    }
    assert differences(recipe, baseline(recipe, "causal-lm")) == {
        "name": "chem-causal-lm",
        "learn.bottleneck": "none",
        "learn.context_weight": 1.0,
    }
    assert recipe == Recipe(name="chem", seed=7)


def test_a_baseline_leaves_out_what_only_a_bottleneck_has():
    recipe = Recipe()
    recipe.learn.bottleneck, recipe.learn.rate_weight, recipe.learn.target_dropout = "embedding", 0.1, 0.2
    recipe.represent.replay_weight, recipe.learn.bag_weight = 0.3, 0.4
    assert differences(recipe, baseline(recipe, "contrastive-only")) == {
        "name": "lbr-model-contrastive-only",
        "learn.enabled": False,
        "represent.replay_weight": 0.0,
    }
    assert differences(recipe, baseline(recipe, "causal-lm")) == {
        "name": "lbr-model-causal-lm",
        "learn.bottleneck": "none",
        "learn.context_weight": 1.0,
        "learn.rate_weight": 0.0,
        "learn.target_dropout": 0.0,
        "learn.bag_weight": 0.0,
    }


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_survives_its_file(tmp_path, name):
    made = baseline(Recipe(), name)
    save_recipe(made, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == made


def test_baselines_that_make_no_sense():
    with pytest.raises(LBRError, match="Did you mean causal-lm"):
        baseline(Recipe(), "causal_lm")
    with pytest.raises(LBRError, match="Choose contrastive-only or causal-lm"):
        baseline(Recipe(), "zzz")
    recipe = Recipe()
    recipe.represent.enabled = False
    with pytest.raises(LBRError, match="needs the stage represent"):
        baseline(recipe, "contrastive-only")
    recipe = Recipe()
    recipe.learn.enabled = False
    with pytest.raises(LBRError, match="needs the stage learn"):
        baseline(recipe, "causal-lm")
