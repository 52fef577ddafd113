"""The examples: each finds what the model itself finds. One that lacks its package is skipped."""

import runpy
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from lbr_st.model.build import build_model
from lbr_st.publish.stock import release

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"qdrant_search": "qdrant_client", "langchain_search": "langchain_huggingface"}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_it_prints_the_models_own_ranking(tiny_base, tmp_path, monkeypatch, capsys, name):
    pytest.importorskip(NEEDS[name])
    release(build_model(tiny_base("llama"), max_seq_length=48, lora_rank=2), tmp_path / "m")
    model = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "m"), "an acid", "a salt"])
    texts = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")["DOCUMENTS"]
    expected = []
    for question in ("an acid", "a salt"):
        scores = model.similarity(model.encode_query([question]), model.encode_document(texts))[0]
        best = scores.argsort(descending=True)[:2].tolist()
        expected += [question, *(f"  {scores[row]:.3f}  {texts[row]}" for row in best)]
    assert capsys.readouterr().out.splitlines() == expected
