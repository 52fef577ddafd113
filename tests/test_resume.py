"""What a stage leaves behind: checkpoints to go on from, and a model as good as its copy on disk."""

import shutil

import pytest
import torch
from datasets import Dataset

from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.nll import Head
from lbr_st.recipe import LearnConfig, RepresentConfig
from lbr_st.training.learn import learn
from lbr_st.training.represent import represent

WORDS = ["acid", "base", "salt", "ester", "enzyme", "protein", "an acid", "a base", "a salt", "an ester"]


def train(stage, base, folder, resume):
    model = build_model(base, max_seq_length=32, lora_rank=4)
    if stage == "learn":
        pairs = Dataset.from_dict({"context": [f"query: {word}" for word in WORDS], "target": WORDS})
        config = LearnConfig(max_steps=6, batch_size=2, warmup_steps=1, eval_steps=3)
        learn(model, pairs, config, output_dir=folder, precision="float32", resume=resume, disable_tqdm=True)
    else:
        pairs = Dataset.from_dict({"query": WORDS, "document": [f"the {word}" for word in WORDS]})
        options = RepresentConfig(max_steps=6, batch_size=2, warmup_steps=1, eval_steps=3)
        represent(model, pairs, options, output_dir=folder, precision="float32", resume=resume, disable_tqdm=True)
    state = dict(model.state_dict())
    assert any("trainable_tokens_delta" in name for name in state)
    return {**state, "embeddings": model.encode(WORDS, convert_to_tensor=True)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["learn", "represent"])
def test_resumed_weights_are_those_of_an_uninterrupted_run(tiny_base, tmp_path, stage, dtype):
    base = tiny_base("llama", dtype=dtype)
    whole = train(stage, base, tmp_path / "run", resume=False)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = train(stage, base, tmp_path / "run", resume=True)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("stage", ["learn", "represent"])
def test_after_bfloat16_training_the_model_computes_in_float32_again(tiny_base, tmp_path, stage):
    model = build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4)
    pairs = {"context": WORDS, "target": WORDS} if stage == "learn" else {"query": WORDS, "document": WORDS}
    config = LearnConfig(max_steps=1, batch_size=2) if stage == "learn" else RepresentConfig(max_steps=1, batch_size=2)
    run = learn if stage == "learn" else represent
    run(model, Dataset.from_dict(pairs), config, output_dir=tmp_path / "run", precision="bfloat16", disable_tqdm=True)
    model.save_pretrained(str(tmp_path / "model"))
    found = load_model(tmp_path / "model", device="cpu").encode(WORDS, convert_to_tensor=True)
    torch.testing.assert_close(model.encode(WORDS, convert_to_tensor=True), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
def test_stage_1_computes_in_the_precision_asked_for(tiny_base, tmp_path, monkeypatch, bottleneck, precision):
    seen = []
    real = Head.logits

    def logits(self, hidden):
        out = real(self, hidden)
        seen.append(out.dtype)
        return out

    model = build_model(tiny_base("llama"), max_seq_length=32, lora_rank=4)
    monkeypatch.setattr(Head, "logits", logits)
    pairs = Dataset.from_dict({"context": WORDS, "target": WORDS})
    config = LearnConfig(max_steps=1, batch_size=2, bottleneck=bottleneck)
    learn(model, pairs, config, output_dir=tmp_path / "run", precision=precision, disable_tqdm=True)
    assert set(seen) == {getattr(torch, precision)}
