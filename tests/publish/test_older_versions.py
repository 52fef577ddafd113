"""Releases in older environments: the words that Sentence Transformers 3.4 and transformers 4.57 know, and one try."""

import json
import os
import subprocess
import warnings

import numpy as np
import pytest
from architectures import ARCHITECTURES
from sentence_transformers import SentenceTransformer
from tiny_models import perturbed

from lbr_st.model.build import build_model
from lbr_st.publish.stock import release

TEXTS = ["an acid", "the base of a salt and an ester " * 30, "x", "β-D-glucose; 2,4-D\nline <|lbr_0|> two"]

# Parameters in Sentence Transformers 3.4.1, which passes what a module's file says to its constructor.
OF_TRANSFORMER = {"max_seq_length", "do_lower_case"}
OF_POOLING = {"word_embedding_dimension", "include_prompt"} | {
    f"pooling_mode_{mode}"
    for mode in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
}
OF_DENSE = {"in_features", "out_features", "bias", "activation_function"}

ENCODE = """
import sys, numpy as np
from sentence_transformers import SentenceTransformer
options = {"attn_implementation": sys.argv[4]}
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True, model_kwargs=options)
texts = eval(sys.argv[2])
ways = [model.encode(texts, prompt_name="query"), model.encode(texts, prompt_name="document"), model.encode(texts)]
np.save(sys.argv[3], np.concatenate(ways))
"""


def released(tiny_base, folder, kind, **options):
    release(perturbed(build_model(tiny_base(kind), max_seq_length=24, lora_rank=2, **options)), folder)
    return lambda file: json.loads((folder / file).read_text(encoding="utf-8"))


def encodings(model):
    return np.concatenate([model.encode_query(TEXTS), model.encode_document(TEXTS), model.encode(TEXTS)])


def test_every_file_is_in_the_words_of_older_versions(tiny_base, tmp_path):
    read = released(tiny_base, tmp_path / "m", "llama", projection_dim=8)
    kinds = [module["type"].removeprefix("sentence_transformers.models.") for module in read("modules.json")]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert read("sentence_bert_config.json") == {"max_seq_length": 24, "do_lower_case": False}
    pooling = read("1_Pooling/config.json")
    assert pooling.keys() == OF_POOLING
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_lasttoken", "include_prompt"]
    assert read("2_Dense/config.json").keys() == OF_DENSE
    assert read("tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read("config_sentence_transformers.json")["default_prompt_name"] == "document"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_rotary_base_is_there_in_both_words(tiny_base, tmp_path, kind):
    config = released(tiny_base, tmp_path / "m", kind)("config.json")
    rope = config["rope_parameters"]
    full = rope.get("full_attention", rope)
    assert config["rope_theta"] == full["rope_theta"]
    if kind == "gemma3":
        assert config["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"]
    if kind == "gpt-neox":
        assert (config["rotary_emb_base"], config["rotary_pct"]) == (full["rope_theta"], full["partial_rotary_factor"])


def test_plain_encode_adds_the_documents_prompt(tiny_base, tmp_path):
    released(tiny_base, tmp_path / "m", "llama")
    stock = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    np.testing.assert_array_equal(stock.encode(TEXTS), stock.encode_document(TEXTS))
    assert np.abs(stock.encode(TEXTS) - stock.encode_query(TEXTS)).max() > 1e-3
    assert np.abs(stock.encode(TEXTS) - stock.encode(TEXTS, prompt="")).max() > 1e-3
    released(tiny_base, tmp_path / "bare", "llama", document_prompt="")
    assert SentenceTransformer(str(tmp_path / "bare"), device="cpu").default_prompt_name is None


def test_loading_says_nothing_but_the_default_prompt(tiny_base, tmp_path, caplog, capfd):
    released(tiny_base, tmp_path / "m", "llama", projection_dim=8)
    capfd.readouterr()
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(TEXTS)
    assert all("Default prompt name" in record.getMessage() for record in caplog.records)
    assert "arning" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_older_versions_give_the_same_embeddings(tiny_base, tmp_path, kind):
    """Needs an environment: LBR_ST_OLDER_PYTHON names its interpreter. docs/SERVING.md says how to make one."""
    if not (python := os.environ.get("LBR_ST_OLDER_PYTHON")):
        pytest.skip("LBR_ST_OLDER_PYTHON names no interpreter")
    released(tiny_base, tmp_path / "m", kind, projection_dim=None if kind == "gemma3" else 8)
    rows = tmp_path / "rows.npy"
    attention = "eager" if kind == "gemma2" else "sdpa"  # version 4 takes sdpa and leaves out the cap of its scores
    words = [python, "-c", ENCODE, str(tmp_path / "m"), repr(TEXTS), str(rows), attention]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    stock = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    assert (encodings(stock) * np.load(rows)).sum(axis=1).min() >= 0.99999
