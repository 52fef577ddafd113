"""The untrained model: tokenizer, backbone, pooler, new rows, head; what is refused."""

from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES
from tiny_models import TEXTS, K, encode, new_model
from transformers import AutoConfig, AutoTokenizer, ByT5Tokenizer

from lbr_st.bottleneck.passes import backbone_of
from lbr_st.errors import LBRError
from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.model.tokens import affixes, with_bottleneck_tokens

# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_every_text_ends_with_the_bottleneck(tiny_base):
    model = new_model(tiny_base("llama"))
    backbone = backbone_of(model)
    plain = AutoTokenizer.from_pretrained(tiny_base("llama"))
    assert len(backbone.bottleneck_ids) == K
    assert min(backbone.bottleneck_ids) >= len(plain)
    for text in TEXTS:
        assert model.tokenizer(text)["input_ids"] == plain(text)["input_ids"] + backbone.bottleneck_ids
    assert backbone.affixes == (1, K)
    assert backbone_of(new_model(tiny_base("llama", bos=False))).affixes == (0, K)


@pytest.mark.parametrize("kind", ["llama", "llama-untied"])
@pytest.mark.parametrize("spare_rows", [0, 2, 7])
def test_the_vocabulary_grows_only_as_far_as_needed(tiny_base, kind, spare_rows):
    size = AutoConfig.from_pretrained(tiny_base(kind, spare_rows=spare_rows)).vocab_size
    backbone = backbone_of(new_model(tiny_base(kind, spare_rows=spare_rows)))
    wanted = max(size, len(backbone.tokenizer))
    assert backbone.model.get_input_embeddings().weight.shape[0] == wanted
    assert backbone.model.get_output_embeddings().weight.shape[0] == wanted
    assert backbone.model.config.vocab_size == wanted


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("k", [0, K])
def test_truncation_keeps_the_beginning_and_what_closes_a_text(tiny_base, k, side):
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=k, max_seq_length=10, device="cpu")
    model.tokenizer.padding_side = side
    texts, closing = ["an acid of a base and a salt " * 20, "x"], backbone_of(model).closing_ids
    features = model.preprocess(texts)
    for text, ids, mask in zip(texts, features["input_ids"], features["attention_mask"], strict=True):
        own = model.tokenizer(text, add_special_tokens=False)["input_ids"][: 10 - 1 - len(closing)]
        assert ids[mask.bool()].tolist() == [model.tokenizer.bos_token_id, *own, *closing]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_neither_padding_nor_another_text_in_the_batch_matters(tiny_base, kind):
    model = new_model(tiny_base(kind))
    alone = torch.cat([encode(model, [text]) for text in TEXTS])
    for side, at in (("right", -1), ("left", 0)):
        model.tokenizer.padding_side = side
        assert model.preprocess(TEXTS)["attention_mask"][0, at] == 0
        torch.testing.assert_close(encode(model), alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(len(TEXTS)))
    assert (alone @ alone.T).fill_diagonal_(0).max() < 0.999  # the texts are told apart


def test_chat_template_is_dropped(tiny_base, tmp_path):
    base = tiny_base("llama", chat_template=True)
    assert AutoTokenizer.from_pretrained(base).chat_template
    model = new_model(base)
    torch.testing.assert_close(encode(model), encode(new_model(tiny_base("llama"))), rtol=0, atol=0)
    model.save_pretrained(str(tmp_path / "model"))
    reloaded = load_model(tmp_path / "model", device="cpu")
    assert reloaded.tokenizer.chat_template is None
    assert reloaded.preprocess(["x"])["input_ids"][0, -K:].tolist() == backbone_of(model).bottleneck_ids


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_bottleneck_tokens": -1}, "num_bottleneck_tokens: must be at least 0, not -1"),
        ({"num_bottleneck_tokens": 3, "max_seq_length": 3}, "max_seq_length: 3 leaves no room next to 3"),
        ({"num_bottleneck_tokens": 0, "max_seq_length": 1}, "max_seq_length: 1 leaves no room next to 1"),
        ({"max_seq_length": 513}, "max_seq_length: 513 is more than the 512 tokens"),
        ({"token_init": "zero"}, "token_init is 'zero'"),
        ({"lora_rank": 0}, "lora_rank: must be at least 1, not 0"),
    ],
)
def test_options_out_of_range_are_refused(tiny_base, options, says):
    with pytest.raises(LBRError, match=says):
        build_model(tiny_base("llama"), device="cpu", **options)


def test_a_tokenizer_that_cannot_append_is_refused(tiny_base):
    with pytest.raises(LBRError, match=r"slow.*tokenizer\.json"):
        with_bottleneck_tokens(ByT5Tokenizer(), 2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base("llama"))
    tokenizer.eos_token = None
    with pytest.raises(LBRError, match=r"no end-of-text \(eos\) token"):
        with_bottleneck_tokens(tokenizer, 2)


def test_bottleneck_tokens_are_not_added_twice(tiny_base, tmp_path):
    new_model(tiny_base("llama")).save_pretrained(str(tmp_path))
    with pytest.raises(LBRError, match=r"already has the bottleneck token <\|lbr_0\|>.*load_model"):
        build_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(("kind", "name"), [("bert", "BertModel"), ("t5", "T5ForConditionalGeneration")])
def test_a_base_that_is_no_decoder_is_refused(tiny_base, kind, name):
    with pytest.raises(LBRError, match=rf"{name} is not a causal language model.*decoder-only") as caught:
        build_model(tiny_base(kind), device="cpu")
    assert caught.value.where == tiny_base(kind)


def test_a_tokenizer_that_changes_the_texts_tokens_is_refused():
    class Reverses:
        name_or_path = "odd"

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [0, 2, 1] if add_special_tokens else [1, 2]}

    with pytest.raises(LBRError, match=r"odd: cannot tell a text's own tokens.*\[0, 2, 1\]"):
        affixes(Reverses())


# --- the new rows and the head ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "llama-untied"])
@pytest.mark.parametrize("how", ["mean", "eos", "random"])
def test_new_rows_start_as_asked(tiny_base, kind, how):
    backbone = backbone_of(new_model(tiny_base(kind), token_init=how))
    table, eos = backbone.model.get_input_embeddings().weight, backbone.tokenizer.eos_token_id
    new, old = table[backbone.bottleneck_ids], table[: min(backbone.bottleneck_ids)]
    assert torch.cdist(new, new).fill_diagonal_(9).min() > 0  # k different rows
    if how == "random":
        assert 0.5 < new.std() / old.std() < 2
    else:
        centre = old.mean(dim=0) if how == "mean" else table[eos]
        assert ((new - centre).abs() < old.std(dim=0)).all()
        assert (new - centre).std() < 0.2 * old.std()


def test_a_separate_head_grows_by_the_mean(tiny_base):
    """The new tokens are never labels, but a row drawn again at each load would change a saved model's digest."""
    backbone = backbone_of(new_model(tiny_base("llama-untied")))
    head, ids = backbone.model.get_output_embeddings().weight, backbone.bottleneck_ids
    torch.testing.assert_close(head[ids], head[: min(ids)].mean(dim=0).expand(K, -1))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_are_the_architectures_own(tiny_base, kind):
    backbone = backbone_of(new_model(tiny_base(kind)))
    backbone.check_head()
    ids = torch.randint(0, 300, (2, 9))
    with torch.no_grad():
        # Of the tokens that texts are made of; bottleneck tokens are never predicted.
        expected = backbone.model(input_ids=ids).logits[..., : min(backbone.bottleneck_ids)]
        found = backbone.logits(backbone.decoder(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "wrong"), [("llama", {"scale": 1.1}), ("gemma2", {"softcap": None})])
def test_an_unknown_head_is_refused(tiny_base, kind, wrong, monkeypatch):
    monkeypatch.setattr(CausalBackbone, "logits", lambda self, hidden: replace(self.head, **wrong).logits(hidden))
    with pytest.raises(LBRError, match=r"unknown form of language-modelling head: \w+ForCausalLM's"):
        new_model(tiny_base(kind))


def test_a_head_of_several_layers_is_refused(tiny_base):
    backbone = backbone_of(new_model(tiny_base("llama-untied")))
    backbone.model.set_output_embeddings(torch.nn.Sequential(backbone.model.get_output_embeddings()))
    with pytest.raises(LBRError, match="is a Sequential, not a plain linear layer"):
        backbone.check_head()
