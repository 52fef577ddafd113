"""A model without bottleneck tokens: its embedding is the end-of-text token's state; trained, saved and released."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from no_bottleneck import altered, new_model, own_ids
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import TEXTS, encode, perturbed
from transformers import AutoModelForCausalLM, AutoTokenizer

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.model.load import load_model
from lbr_st.model.lora import TRAINED_ROWS
from lbr_st.publish.stock import release
from lbr_st.recipe import LearnConfig
from lbr_st.training.trainer import training_arguments


def test_every_text_ends_with_end_of_text_once(any_base):
    model, plain = new_model(any_base), AutoTokenizer.from_pretrained(any_base)
    backbone = backbone_of(model)
    assert backbone.bottleneck_ids == []
    assert backbone.closing_ids == [plain.eos_token_id]
    assert backbone.affixes == (int(plain("a")["input_ids"][0] == plain.bos_token_id), 1)
    for text in TEXTS:
        before = plain(text)["input_ids"]
        assert model.tokenizer(text)["input_ids"] == [*[i for i in before if i != plain.eos_token_id], 2]
    assert len(model.tokenizer) == len(plain)
    assert backbone.model.config.vocab_size == AutoModelForCausalLM.from_pretrained(any_base).config.vocab_size


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_embedding_is_the_state_of_the_appended_token(any_base, side):
    model = new_model(any_base)
    model.default_prompt_name = None  # the texts as they are
    model.tokenizer.padding_side = side
    assert model.preprocess(TEXTS)["attention_mask"].min() == 0
    lm = AutoModelForCausalLM.from_pretrained(any_base, dtype=torch.float32)
    bos = [1] * backbone_of(model).affixes[0]
    for text, found in zip(TEXTS, encode(model), strict=True):
        ids = torch.tensor([[*bos, *own_ids(model, text), lm.config.eos_token_id]])
        with torch.no_grad():
            states = lm.base_model(input_ids=ids).last_hidden_state[0]
        unit = states / states.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found, unit[-1], rtol=0, atol=1e-5)
        assert (found - unit[-2]).abs().max() > 0.01


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
        # Only through the embedding: a tied head has the same row.
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


def encodings(model):
    return np.concatenate([model.encode_query(TEXTS), model.encode_document([text * 30 for text in TEXTS])])


@pytest.mark.parametrize("options", [{"lora_rank": 4, "projection_dim": 8}, {}], ids=["lora", "full"])
def test_training_reloaded_and_released_models_agree(any_base, tmp_path, options):
    model = perturbed(new_model(any_base, max_seq_length=24, **options))
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
    model = perturbed(new_model(base, max_seq_length=24, lora_rank=4))
    release(model, tmp_path / "released")
    release(model, tmp_path / "adapter", adapter_only=True)
    release(tmp_path / "adapter", tmp_path / "rebuilt", base=base)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("released", "rebuilt"))
    assert first.keys() == second.keys()
    stock = SentenceTransformer(str(tmp_path / "rebuilt"), device="cpu")
    np.testing.assert_allclose(encodings(stock), encodings(model), atol=2e-3)  # adapters are kept in 16 bits
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tuple(t.shape) for name, t in adapter.items() if "embed" in name} == {(1, 32)}
