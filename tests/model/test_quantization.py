"""4-bit bases: refused where they cannot be trained, and where they can, released in full precision."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import WORDS, run_stage
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lbr_st import pipeline
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.errors import LBRError
from lbr_st.model import lora as quantization
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.lora import TRAINED_ROWS, is_quantized
from lbr_st.publish.card import CardInfo
from lbr_st.publish.stock import release
from lbr_st.recipe import LearnConfig, ModelConfig, Recipe, RepresentConfig


def pretend(monkeypatch, *, bitsandbytes=True, gpu=True):
    found = importlib.util.find_spec("json") if bitsandbytes else None
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)


@pytest.mark.parametrize(
    ("machine", "options", "message"),
    [
        ({}, {"lora_rank": None}, r"4-bit weights cannot be trained themselves.*LoRA"),
        ({"bitsandbytes": False}, {}, r"bitsandbytes is not installed.*lbr-st\[qlora\]"),
        ({"gpu": False}, {}, r"needs a CUDA GPU.*in 16 bits, or run it on a machine with a GPU"),
        ({}, {"device": "cpu"}, "needs a CUDA GPU"),
        ({}, {"quantize": "8bit"}, "4bit"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_base_is_fetched(monkeypatch, machine, options, message):
    pretend(monkeypatch, **machine)
    monkeypatch.setattr("lbr_st.model.bases.resolve_base", lambda *_: pytest.fail("the base was asked for"))
    with pytest.raises(LBRError, match=message):
        build_model("org/base", **{"lora_rank": 4, "quantize": "4bit", **options})


def test_only_a_model_with_adapters_is_loaded_in_4_bits(monkeypatch, tiny_base, tmp_path):
    pretend(monkeypatch)
    build_model(tiny_base("llama"), device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(LBRError, match="4-bit weights cannot be trained themselves"):
        load_model(tmp_path, quantize="4bit")


def test_a_recipe_has_it_with_adapters_only():
    with pytest.raises(LBRError, match=r"^model\.quantize: .*model\.lora"):
        Recipe(model=ModelConfig(quantize="4bit", lora=False)).validate()


@pytest.mark.parametrize("command", [pipeline.run, pipeline.run_learn])
def test_a_run_is_refused_before_it_writes_or_fetches_anything(monkeypatch, tmp_path, command):
    pretend(monkeypatch, gpu=False)
    monkeypatch.setattr(pipeline, "prepare", lambda *_, **__: pytest.fail("the data was asked for"))
    with pytest.raises(LBRError, match="needs a CUDA GPU"):
        command(Recipe(model=ModelConfig(quantize="4bit")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_base_in_4_bits_is_not_sharded(monkeypatch, tmp_path):
    pretend(monkeypatch)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(LBRError, match=r"cannot be spread over processes.*ddp\.yaml"):
        pipeline.run(Recipe(model=ModelConfig(quantize="4bit")), tmp_path / "out")


# What follows is done with bitsandbytes on a CPU, instead of the GPU that is asked for otherwise.


@pytest.fixture
def on_cpu(monkeypatch):
    modules = pytest.importorskip("bitsandbytes").nn.modules
    monkeypatch.setattr(quantization, "_has_gpu", lambda device: True)
    # Its fast path on some CPUs packs the weights for inference when they are first used; training cannot go on then.
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False, raising=False)


@pytest.fixture
def base(tiny_base):
    return tiny_base("llama-untied", dtype="bfloat16")


def build(base):
    return build_model(base, max_seq_length=32, lora_rank=4, quantize="4bit", device="cpu")


def test_only_the_decoders_linear_layers_are_in_4_bits(on_cpu, base):
    model = build(base)
    backbone = backbone_of(model)
    assert is_quantized(backbone.model)
    layers = {name: type(m) for name, m in backbone.decoder.named_modules() if name.endswith("base_layer")}
    assert len(layers) == 2 * 7 + 1  # of each block, and peft's own around the embeddings
    assert {kind.__name__ for kind in layers.values()} == {"Linear4bit", "Embedding"}
    assert type(backbone.model.get_output_embeddings()) is torch.nn.Linear
    assert all(p.dtype == (torch.float32 if p.is_floating_point() else torch.uint8) for p in model.parameters())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or TRAINED_ROWS in name for name in trained)
    assert len(trained) == 2 * 2 * 7 + 1


def trained_weights(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("stage", ["learn", "represent"])
def test_training_moves_adapters_and_is_resumed_to_the_same_weights(on_cpu, base, tmp_path, stage):
    start = {name: weight.clone() for name, weight in trained_weights(build(base)).items()}
    model, again = build(base), build(base)
    losses = [entry["loss"] for entry in run_stage(stage, model, tmp_path / "run") if "loss" in entry]
    assert losses[-1] < losses[0]
    whole = trained_weights(model)
    assert all(not torch.equal(whole[name], start[name]) for name in start)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    run_stage(stage, again, tmp_path / "run", resume=True)
    resumed = trained_weights(again)
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


@pytest.fixture
def learnt(on_cpu, base, tmp_path):
    model = build(base)
    run_stage("learn", model, tmp_path / "run")
    return model


def test_what_is_saved_is_read_in_full_precision_or_in_4_bits_again(learnt, tmp_path):
    model = learnt
    model.save_pretrained(str(tmp_path / "saved"))
    full = load_model(tmp_path / "saved", device="cpu")
    assert not is_quantized(backbone_of(full).model)
    assert all(weight.dtype == torch.float32 for weight in full.parameters())
    again = load_model(tmp_path / "saved", device="cpu", quantize="4bit")
    assert is_quantized(backbone_of(again).model)
    np.testing.assert_allclose(again.encode(WORDS), model.encode(WORDS), atol=1e-6)
    assert np.abs(full.encode(WORDS) - model.encode(WORDS)).max() > 1e-3  # which is why the two are told apart


def test_a_release_is_the_full_precision_base_with_the_adapters(learnt, base, tmp_path, capsys):
    model, before = learnt, learnt.encode(WORDS)
    info = CardInfo("toy", recipe=Recipe(model=ModelConfig(base="toy", quantize="4bit")))
    release(model, tmp_path / "released", info=info)
    assert "least cosine to the 4-bit model is 0." in capsys.readouterr().err
    assert is_quantized(backbone_of(model).model)
    np.testing.assert_array_equal(model.encode(WORDS), before)

    assert "quantization_config" not in json.loads((tmp_path / "released" / "config.json").read_text())
    released = load_file(tmp_path / "released" / "model.safetensors")
    assert {weight.dtype for weight in released.values()} == {torch.float32}
    plain = load_file(f"{base}/model.safetensors")
    for layer in ("self_attn.q_proj", "mlp.down_proj"):
        adapters = backbone_of(model).decoder.get_submodule(f"layers.1.{layer}")
        change = adapters.get_delta_weight("default")
        assert change.abs().max() > 0
        expected = plain[f"model.layers.1.{layer}.weight"].float() + change
        torch.testing.assert_close(released[f"layers.1.{layer}.weight"], expected, rtol=0, atol=1e-6)
    # The same from the adapters alone, which are kept in 16 bits.
    release(model, tmp_path / "adapter", adapter_only=True)
    other = load_file(release(tmp_path / "adapter", tmp_path / "again", base=base) / "model.safetensors")
    assert all(torch.allclose(released[name], other[name], atol=1e-3) for name in released)
    stock = SentenceTransformer(str(tmp_path / "released"), device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    np.testing.assert_allclose(stock.encode(WORDS), load_model(tmp_path / "saved").encode(WORDS), atol=1e-5)
    assert "in 4 bits (QLoRA)" in (tmp_path / "released" / "README.md").read_text(encoding="utf-8")


def test_a_base_that_is_in_4_bits_on_disk_is_not_merged_into(on_cpu, base, tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu").save_pretrained(
        tmp_path / "small"
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{base}/{file}", tmp_path / "small")
    model = build_model(str(tmp_path / "small"), max_seq_length=32, lora_rank=4, device="cpu")
    with pytest.raises(LBRError, match="the base itself is in 4 bits"):
        release(model, tmp_path / "released")
    assert not (tmp_path / "released").exists()


def test_a_run_continues_in_4_bits_after_a_stage_that_is_done(on_cpu, base, tmp_path, monkeypatch):
    rows = [{"query": f"acid {i}", "document": f"the acid of the class {i} and a base of {i}"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = Recipe(precision="float32", model=ModelConfig(base=base, max_seq_length=32, lora_rank=4, quantize="4bit"))
    recipe.data.source = str(tmp_path / "pairs.jsonl")
    recipe.learn = LearnConfig(max_steps=2, batch_size=2, warmup_steps=0, num_eval_pairs=2)
    recipe.represent = RepresentConfig(max_steps=2, batch_size=4, warmup_steps=0)
    recipe.evaluate.enabled = False
    pipeline.run(recipe, tmp_path / "whole")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(pipeline, "represent", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(recipe, tmp_path / "out")
    pipeline.run(recipe, tmp_path / "out")
    whole, continued = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
