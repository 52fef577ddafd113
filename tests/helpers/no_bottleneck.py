"""Models without bottleneck tokens for tests, of bases whose tokenizers end texts in every way there is."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.loss.loss_utils import ForCausalLMLoss

from lbr_st.bottleneck.passes import backbone_of
from lbr_st.bottleneck.rows import IGNORE
from lbr_st.model.build import build_model

CONTEXTS = ["query: an acid", "document: the base of a salt and an ester", "x", "document: an enzyme, whole"]
TARGETS = ["a protein and an enzyme of the acid", "salt", "the base, an ester", ""]
PAIRS = {"context": [f"query: {x}" for x in "abcdef"], "target": [f"the {x} of a salt" for x in "abcdef"]}
QUIET = {"disable_tqdm": True, "precision": "float32"}


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
def any_base(request, tiny_base, tmp_path):
    kind = request.param
    if kind.startswith("eos"):
        name = kind.replace(" ", "_")
        return altered(tiny_base("llama"), tmp_path / "base", **{name: True})
    return tiny_base("llama", bos=kind != "no bos", pad=kind != "no pad")


def columns(model, contexts=CONTEXTS, targets=TARGETS):
    return [model.preprocess(list(contexts)), model.preprocess(list(targets))]


def own_ids(model, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


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
