"""The second real base: a large tied vocabulary, scaled embeddings, sliding windows and an opening token."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lbr_st
from lbr_st.cli import main
from lbr_st.losses import IBGenerativeLoss
from lbr_st.model.bases import resolve_base

BASE = "gemma3-270m"
TEXT = [
    "Aspirin, also known as acetylsalicylic acid, is a medication used to reduce pain, fever, and inflammation.",
    " It was first sold in 1899 by the company Bayer in Germany.",
]

pytestmark = pytest.mark.slow


def test_before_training_it_predicts_as_the_base_does():
    tokenizer = AutoTokenizer.from_pretrained(resolve_base(BASE))
    base = AutoModelForCausalLM.from_pretrained(resolve_base(BASE), dtype=torch.float32)
    whole = torch.tensor([tokenizer("".join(TEXT)).input_ids])
    assert whole[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(base(whole).logits[0, :-1], whole[0, 1:], reduction="none")
    own = nll[len(tokenizer(TEXT[0]).input_ids) - 1 :].mean().item()
    assert own < 3  # a language model of English

    model = lbr_st.build_model(BASE, num_bottleneck_tokens=0, query_prompt="", document_prompt="", device="cpu")
    loss = IBGenerativeLoss(model, bottleneck="none").eval()
    found = loss.target_nll([model.preprocess([text]) for text in TEXT])
    found = found[: whole.shape[1] - len(tokenizer(TEXT[0]).input_ids)]  # and the end of the text
    assert found.mean().item() == pytest.approx(own, abs=0.1)


def test_it_trains_and_its_release_is_proven(tmp_path):
    rows = [{"query": f"term {n}", "document": f"Term {n} names the {n}th thing of a list."} for n in range(64)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "data.source": tmp_path / "pairs.jsonl",
        "model.base": BASE,
        "model.accept_licence": "true",
        "model.lora_rank": 4,
        "learn.max_steps": 2,
        "learn.batch_size": 4,
        "represent.max_steps": 2,
        "represent.batch_size": 4,
        "output": tmp_path / "out",
    }
    assert main(["train", *(f"--{key}={value}" for key, value in options.items())]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()  # written once it equals the trained model
    assert "base_model: google/gemma-3-270m" in (tmp_path / "out" / "README.md").read_text()
