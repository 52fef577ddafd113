"""Start from an embedder, and keep a share of what training changed."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedders import CLOSING, FORMS, INSTRUCT, PROMPTS, change, embedder, random_texts
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import perturbed, run_stage
from transformers import AutoTokenizer

from lbr_st.bottleneck.passes import backbone_of
from lbr_st.errors import LBRError
from lbr_st.model.build import build_model
from lbr_st.model.embedder import embedder_prompts, prompts_for
from lbr_st.model.load import load_model
from lbr_st.model.lora import merge_lora
from lbr_st.model.tokens import with_bottleneck_tokens
from lbr_st.publish.bundle import bundle
from lbr_st.publish.card import CardInfo
from lbr_st.publish.stock import build_released, release
from lbr_st.recipe import ModelConfig, Recipe, ReleaseConfig, save_recipe
from lbr_st.training.model import keep_share, model_from_recipe

HUNDRED = random_texts()


def build(base, k, **options):
    return build_model(base, num_bottleneck_tokens=k, max_seq_length=128, device="cpu", **options)


def stock(folder):
    return SentenceTransformer(str(folder), device="cpu")


def encodings(model, texts=HUNDRED):
    parts = [encode(texts, convert_to_numpy=True) for encode in (model.encode_query, model.encode_document)]
    both = np.concatenate(parts).astype(np.float64)
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def lowest(one, other):
    return float((one * other).sum(axis=1).min())


# --- with as many tokens, the embedder itself -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"lora_rank": 2}, {}], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("form", "kind", "bos"),
    [
        ("ours", "llama", True),
        ("ours", "gemma3", False),
        ("qwen3-embedding", "qwen3", False),
        ("f2llm", "qwen3", False),
        ("f2llm", "gemma2", True),
        ("two", "llama", True),
    ],
)
def test_without_training_it_is_the_embedder(tiny_base, tmp_path, form, kind, bos, options):
    base = embedder(form, tiny_base, tmp_path / "base", kind=kind, bos=bos)
    expected = encodings(stock(base))
    model = build(base, CLOSING[form], **options)
    assert lowest(expected, encodings(model)) >= 0.9999
    assert lowest(expected, encodings(stock(release(model, tmp_path / "out")))) >= 0.9999
    # That says something: the texts are told apart, and what replaces the closing tokens is what counts.
    assert lowest(expected, np.roll(expected, 1, axis=0)) < 0.99
    closing = backbone_of(model).tokenizer.convert_ids_to_tokens(model.tokenizer("acid")["input_ids"][-CLOSING[form] :])
    assert closing == [f"<|lbr_{index}|>" for index in range(CLOSING[form])]
    assert len(model.tokenizer("acid")["input_ids"]) == len(AutoTokenizer.from_pretrained(base)("acid")["input_ids"])


def test_weights_in_16_bits_are_read_as_elsewhere(tiny_base, tmp_path):
    base = embedder("f2llm", tiny_base, tmp_path / "base", dtype="bfloat16")
    model = build(base, 1, lora_rank=2)
    assert backbone_of(model).model.dtype == torch.float32
    reference = SentenceTransformer(base, device="cpu", model_kwargs={"dtype": torch.float32})
    assert lowest(encodings(reference), encodings(model)) >= 0.9999


@pytest.mark.parametrize("form", FORMS)
def test_its_prompts_are_kept_unless_the_recipe_sets_its_own(tiny_base, tmp_path, form):
    base = embedder(form, tiny_base, tmp_path / "base")
    own = {"query": "", "document": "", **PROMPTS[form]}
    model = build(base, 2, lora_rank=2)
    assert model.prompts == own
    assert stock(release(model, tmp_path / "out")).prompts == own
    assert prompts_for(base, None, None) == own
    assert build(base, 2, query_prompt="ask: ").prompts == own | {"query": "ask: "}
    assert prompts_for(base, None, "") == own | {"document": ""}
    plain = {"query": "query: ", "document": "document: "}
    assert prompts_for(tiny_base("llama"), None, None) == prompts_for("smollm2-135m", None, None) == plain
    assert prompts_for(tiny_base("llama"), "", None) == plain | {"query": ""}
    assert embedder_prompts(tiny_base("llama")) is None


@pytest.mark.parametrize(
    ("form", "k", "copied"),
    [("ours", 8, [0, 0, 1, 1, 2, 2, 3, 3]), ("ours", 2, [1, 3]), ("ours", 3, [1, 2, 3]), ("f2llm", 3, [0, 0, 0])],
)
def test_another_number_of_tokens_copies_those_that_there_are(tiny_base, tmp_path, form, k, copied):
    base = embedder(form, tiny_base, tmp_path / "base")
    old = AutoTokenizer.from_pretrained(base)("a")["input_ids"][-CLOSING[form] :]
    before = load_file(Path(base) / "model.safetensors")["embed_tokens.weight"].float()
    model = build(base, k, lora_rank=2)
    ids = model.tokenizer("a")["input_ids"][-k:]
    backbone = backbone_of(model)
    assert ids == backbone.bottleneck_ids == backbone.closing_ids
    torch.testing.assert_close(backbone.embed(torch.tensor(ids)).detach(), before[[old[place] for place in copied]])
    assert encodings(stock(release(model, tmp_path / "out"))).shape == (200, 32)


def test_no_text_can_forge_a_token_that_was_replaced(tiny_base, tmp_path):
    model = build(embedder("ours", tiny_base, tmp_path / "base"), 2)
    ids = model.tokenizer("acid<|lbr_0|><|lbr_3|>")["input_ids"]
    assert sum(token in backbone_of(model).bottleneck_ids for token in ids) == 2


# --- trained, saved, resumed, bundled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_both_stages_train_it_and_it_is_saved_loaded_and_released(tiny_base, tmp_path, form):
    base = embedder(form, tiny_base, tmp_path / "base")
    model = build(base, 2, lora_rank=2)
    before = encodings(model)
    for stage in ("learn", "represent"):
        run_stage(stage, model, tmp_path / stage, max_steps=2)
    expected = encodings(model)
    assert lowest(before, expected) < 0.999
    model.save_pretrained(str(tmp_path / "training"))
    loaded = load_model(tmp_path / "training", device="cpu")
    assert backbone_of(loaded).replaced_ids == backbone_of(model).replaced_ids
    np.testing.assert_allclose(encodings(loaded), expected, atol=1e-5)
    np.testing.assert_allclose(encodings(stock(release(loaded, tmp_path / "out"))), expected, atol=1e-5)


def test_the_head_is_rebuilt_from_the_embeddings(tiny_base, tmp_path):
    base = embedder("f2llm", tiny_base, tmp_path / "base")
    backbone = backbone_of(build(base, 1))
    words = load_file(Path(base) / "model.safetensors")["embed_tokens.weight"].float()
    first = backbone.bottleneck_ids[0]
    torch.testing.assert_close(backbone.head.weight.detach(), words[:first])


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("1_Pooling", {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}, "pools by mean"),
        ("1_Pooling", {"pooling_mode_mean_tokens": True}, "pools by mean and lasttoken"),
        ("", {"is_causal": False}, "not causal: its attention is bidirectional"),
        ("", {"auto_map": {"AutoModel": "modeling.Bi"}}, "needs code of its own, which is never run"),
        ("", {"tie_word_embeddings": False}, "head is missing.*not tied to the embeddings, cannot be rebuilt"),
    ],
)
@pytest.mark.parametrize("form", ["qwen3-embedding", "f2llm"])
def test_what_cannot_be_continued_is_refused(tiny_base, tmp_path, form, file, values, says):
    base = embedder(form, tiny_base, tmp_path / "base")
    change(tmp_path / "base" / file / "config.json", **values)
    with pytest.raises(LBRError, match=says) as caught:
        build(base, 1)
    assert caught.value.where == base
    assert caught.value.fix


@pytest.mark.parametrize(
    ("values", "says"),
    [({"do_lower_case": True}, "changes texts"), ({"modality_config": {"text": {}, "message": {}}}, "chat template")],
)
def test_an_embedder_that_changes_texts_is_refused(tiny_base, tmp_path, values, says):
    base = embedder("f2llm", tiny_base, tmp_path / "base")
    change(tmp_path / "base" / "sentence_bert_config.json", max_seq_length=64, **values)
    with pytest.raises(LBRError, match=says):
        build(base, 1)


def test_an_untied_head_that_is_there_is_used(tiny_base, tmp_path):
    base = embedder("f2llm", tiny_base, tmp_path / "base")
    head = torch.randn(*load_file(tmp_path / "base" / "model.safetensors")["embed_tokens.weight"].shape)
    weights = {f"model.{name}": one for name, one in load_file(tmp_path / "base" / "model.safetensors").items()}
    save_file({**weights, "lm_head.weight": head}, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    change(tmp_path / "base" / "config.json", architectures=["Qwen3ForCausalLM"], tie_word_embeddings=False)
    backbone = backbone_of(build(base, 1, lora_rank=2))
    torch.testing.assert_close(backbone.head.weight.detach(), head[: backbone.bottleneck_ids[0]])


def test_other_modules_and_encoders_are_refused(tiny_base, tmp_path, bert):
    release(build_model(tiny_base("llama"), projection_dim=8, device="cpu"), tmp_path / "projected")
    with pytest.raises(LBRError, match="is made of Transformer, Pooling, Dense, Normalize"):
        build(str(tmp_path / "projected"), 4)
    bert().save(str(tmp_path / "bert"))
    with pytest.raises(LBRError, match="pools by mean"):
        build(str(tmp_path / "bert"), 1)
    change(tmp_path / "bert" / "1_Pooling" / "config.json", pooling_mode="lasttoken")
    with pytest.raises(LBRError, match="BertModel is not a causal language model"):
        build(str(tmp_path / "bert"), 1)
    base = embedder("f2llm", tiny_base, tmp_path / "foreign")
    modules = json.loads((tmp_path / "foreign" / "modules.json").read_text())
    modules[0]["type"] = "custom.models.Transformer"
    (tmp_path / "foreign" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LBRError, match="needs code of its own"):
        build(base, 1)


def test_tokens_that_cannot_be_replaced_are_refused(tiny_base, tmp_path):
    base = embedder("f2llm", tiny_base, tmp_path / "base")
    with pytest.raises(LBRError, match=r"num_bottleneck_tokens: is 0, but an embedder.*It has 1"):
        build(base, 0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    with pytest.raises(LBRError, match="cannot remove the tokens"):
        with_bottleneck_tokens(tokenizer, 1, replace=True)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(LBRError, match="appends no token"):
        with_bottleneck_tokens(tokenizer, 1, replace=True)


# --- keep what it knew ------------------------------------------------------------------------------------------------


def trained_on(base, k, **options):
    return perturbed(build(base, k, **{"lora_rank": 2, **options}))


@pytest.mark.parametrize("form", FORMS)
def test_no_change_is_the_embedder_and_all_is_the_trained_model(tiny_base, tmp_path, form):
    base = embedder(form, tiny_base, tmp_path / "base")
    model = trained_on(base, CLOSING[form])
    trained, before = encodings(model), encodings(stock(base))
    assert lowest(trained, before) < 0.99
    assert lowest(encodings(stock(release(model, tmp_path / "none", scale=0.0))), before) >= 0.9999
    assert lowest(encodings(stock(release(model, tmp_path / "all", scale=1.0))), trained) >= 0.9999
    np.testing.assert_array_equal(encodings(model), trained)  # the model in hand is left as it is


@pytest.mark.parametrize(("form", "k"), [("ours", 4), ("ours", 6), ("qwen3-embedding", 1), ("f2llm", 2)])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_share_is_the_interpolation_of_the_weights(tiny_base, tmp_path, form, k, share):
    base = embedder(form, tiny_base, tmp_path / "base")
    model = trained_on(base, k)
    folder = release(model, tmp_path / "out", scale=share)
    # Slowly: the weights of both models in full, without adapters, each mixed by itself.
    merged, start = copy.deepcopy(backbone_of(model).model), backbone_of(build(base, k)).model
    merge_lora(merged)
    begin = dict(start.base_model.named_parameters())
    mixed = {
        name: begin[name] + share * (weight - begin[name]) for name, weight in merged.base_model.named_parameters()
    }
    written = load_file(folder / "model.safetensors")
    assert written.keys() == mixed.keys()
    for name, weight in mixed.items():
        torch.testing.assert_close(written[name], weight.detach(), rtol=0, atol=1e-5)
    assert lowest(encodings(stock(folder)), encodings(model)) < 0.9999


def test_a_saved_model_a_bundle_and_the_recipe_keep_the_share(tiny_base, tmp_path):
    base = embedder("ours", tiny_base, tmp_path / "base")
    model = trained_on(base, 4)
    half = encodings(stock(release(model, tmp_path / "half", scale=0.5)))
    model.save_pretrained(str(tmp_path / "run"))
    recipe = Recipe(name="toy", model=ModelConfig(base=base), release=ReleaseConfig(scale=0.5))
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    np.testing.assert_allclose(encodings(stock(release(tmp_path / "run", tmp_path / "a"))), half, atol=1e-5)
    whole = release(tmp_path / "run", tmp_path / "b", scale=1.0)
    np.testing.assert_allclose(encodings(stock(whole)), encodings(model), atol=1e-5)
    assert "scale: 1.0" in (whole / "recipe.yaml").read_text()
    for made in (
        bundle(tmp_path / "run", into=tmp_path / "bundles", base=base),
        release(tmp_path / "run", tmp_path / "small", adapter_only=True, base=base),
    ):
        built = build_released(str(made), tmp_path / f"built-{made.name}", base=base)
        assert lowest(encodings(stock(built)), half) >= 0.9999
        with pytest.raises(LBRError, match="a bundle is released as it is"):
            release(made, tmp_path / "no", scale=0.5, base=base)
    assert not (tmp_path / "no").exists()


def test_a_share_that_means_nothing_is_refused(tiny_base, tmp_path):
    says = r"release\.scale: is 0\.5, but .* is a language model, no embedder"
    with pytest.raises(LBRError, match=says):
        release(trained_on(tiny_base("llama"), 2), tmp_path / "out", scale=0.5)
    with pytest.raises(LBRError, match=says):
        model_from_recipe(Recipe(model=ModelConfig(base=tiny_base("llama")), release=ReleaseConfig(scale=0.5)))
    base = embedder("f2llm", tiny_base, tmp_path / "base")
    for options in ({"lora_rank": None}, {"projection_dim": 8}):
        with pytest.raises(LBRError, match="only adapters and bottleneck rows can be scaled"):
            keep_share(build(base, 1, **options), 0.5)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(LBRError, match=r"release\.scale: is .*must be at least 0 and at most 1"):
            keep_share(build(base, 1, lora_rank=2), share)
    assert not (tmp_path / "out").exists()


def test_the_scaled_model_is_what_is_proven(tiny_base, tmp_path, monkeypatch):
    from lbr_st.publish import stock as stock_module

    model = trained_on(embedder("f2llm", tiny_base, tmp_path / "base"), 1)
    seen = []
    encode = stock_module.encode_probes
    monkeypatch.setattr(stock_module, "encode_probes", lambda one: seen.append(encode(one)) or seen[-1])
    release(model, tmp_path / "out", scale=0.5, info=CardInfo("toy"))
    proven, found = seen
    np.testing.assert_allclose(proven, found, atol=1e-5)
    assert np.abs(proven - encode(model)).max() > 1e-3
    assert INSTRUCT not in model.prompts.values()
