"""The training model: bottleneck tokens, backbone, pooler, LoRA; saved, loaded, merged."""

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, ByT5Tokenizer

from lbr_st.adapters import has_lora, merge_lora
from lbr_st.bottleneck import backbone_of, pooler_of, trained_bottleneck
from lbr_st.build import build_model, load_model
from lbr_st.errors import LBRError
from lbr_st.losses import IBGenerativeLoss
from lbr_st.modules import CausalBackbone
from lbr_st.modules.bottleneck_tokens import affixes, bottleneck_token_ids, with_bottleneck_tokens

K = 3
TEXTS = ["query: an acid", "document: the base of a salt and an ester, a protein", "x"]


def new_model(base: str, **options) -> SentenceTransformer:
    return build_model(base, num_bottleneck_tokens=K, device="cpu", **options)


@torch.no_grad()
def encode(model, texts=TEXTS) -> torch.Tensor:
    return model.encode(texts, convert_to_tensor=True, show_progress_bar=False)


def train(model, bottleneck="attention", steps=3) -> None:
    loss = IBGenerativeLoss(model, bottleneck=bottleneck).train()
    optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=1e-2)
    columns = [model.preprocess(TEXTS), model.preprocess(["salt", "acid of a base", "an enzyme"])]
    for _ in range(steps):
        optimizer.zero_grad()
        sum(loss([dict(column) for column in columns]).values()).backward()
        optimizer.step()
    model.eval()


def rows(model, ids) -> torch.Tensor:
    """The vectors that the decoder reads for these tokens."""
    with torch.no_grad():
        return backbone_of(model).embed(torch.tensor(ids)).clone()


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
def test_truncation_never_drops_a_bottleneck_token(tiny_base, side):
    model = new_model(tiny_base("llama"), max_seq_length=10)
    model.tokenizer.padding_side = side
    features = model.preprocess(["an acid of a base and a salt " * 20, "x"])
    assert features["input_ids"].shape[1] == 10
    for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True):
        assert ids[mask.bool()][-K:].tolist() == backbone_of(model).bottleneck_ids
    assert features["input_ids"][0, 0] == model.tokenizer.bos_token_id


def test_a_text_longer_than_the_limit_is_its_beginning(tiny_base):
    model = new_model(tiny_base("llama"), max_seq_length=10)
    ids = model.tokenizer("an acid of a base and a salt", add_special_tokens=False)["input_ids"]
    beginning = model.tokenizer.decode(ids[: 10 - K - 1])
    torch.testing.assert_close(encode(model, ["an acid of a base and a salt"]), encode(model, [beginning]))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_padding_side_does_not_matter(tiny_base, kind):
    model = new_model(tiny_base(kind))
    assert model.tokenizer.padding_side == "right"
    right = encode(model)
    model.tokenizer.padding_side = "left"
    assert model.preprocess(TEXTS)["attention_mask"][0, 0] == 0
    torch.testing.assert_close(encode(model), right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_another_text_in_the_batch_does_not_matter(tiny_base, kind):
    model = new_model(tiny_base(kind))
    alone = torch.cat([encode(model, [text]) for text in TEXTS])
    torch.testing.assert_close(encode(model), alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(len(TEXTS)))
    assert (alone @ alone.T).fill_diagonal_(0).max() < 0.999  # the texts are told apart


def test_chat_template_is_dropped(tiny_base, tmp_path):
    base = tiny_base("llama", chat_template=True)
    assert AutoTokenizer.from_pretrained(base).chat_template
    model = new_model(base)
    torch.testing.assert_close(encode(model), encode(new_model(tiny_base("llama"))), rtol=0, atol=0)
    assert model.preprocess(["x"])["input_ids"][0, -K:].tolist() == backbone_of(model).bottleneck_ids
    model.save_pretrained(str(tmp_path / "model"))
    reloaded = load_model(tmp_path / "model", device="cpu")
    assert reloaded.tokenizer.chat_template is None
    assert reloaded.preprocess(["x"])["input_ids"][0, -K:].tolist() == backbone_of(model).bottleneck_ids


def test_without_a_pad_token_eos_pads(tiny_base):
    base = tiny_base("llama", pad=False)
    assert AutoTokenizer.from_pretrained(base).pad_token is None
    model = new_model(base)
    assert model.tokenizer.pad_token == model.tokenizer.eos_token == "</s>"
    alone = torch.cat([encode(model, [text]) for text in TEXTS])
    torch.testing.assert_close(encode(model), alone, rtol=0, atol=1e-6)


def test_the_base_tokenizer_is_not_changed(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base("llama"))
    before = tokenizer("x")["input_ids"], len(tokenizer)
    copy = with_bottleneck_tokens(tokenizer, 2)
    assert (tokenizer("x")["input_ids"], len(tokenizer)) == before
    assert copy("x")["input_ids"] == before[0] + bottleneck_token_ids(copy)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_fewer_than_no_bottleneck_tokens_are_refused(tiny_base):
    with pytest.raises(LBRError, match=r"num_bottleneck_tokens is -1.*at least 0"):
        build_model(tiny_base("llama"), num_bottleneck_tokens=-1, device="cpu")


def test_no_room_for_the_text_is_refused(tiny_base):
    with pytest.raises(LBRError, match=r"max_seq_length.*3.*no room beside 3"):
        build_model(tiny_base("llama"), num_bottleneck_tokens=3, max_seq_length=3, device="cpu")


def test_slow_tokenizer_is_refused(tiny_base, tmp_path):
    slow = ByT5Tokenizer()
    assert not slow.is_fast
    with pytest.raises(LBRError, match=r"slow.*tokenizer\.json"):
        with_bottleneck_tokens(slow, 2)
    folder = tmp_path / "slow"
    shutil.copytree(tiny_base("llama", spare_rows=100), folder)
    for file in folder.glob("*token*"):
        file.unlink()
    slow.save_pretrained(folder)
    with pytest.raises(LBRError, match=r"slow.*tokenizer\.json"):
        build_model(str(folder), device="cpu")


def test_tokenizer_without_eos_is_refused(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base("llama"))
    tokenizer.eos_token = None
    with pytest.raises(LBRError, match=r"no end-of-text \(eos\) token"):
        with_bottleneck_tokens(tokenizer, 2)


def test_bottleneck_tokens_are_not_added_twice(tiny_base, tmp_path):
    model = new_model(tiny_base("llama"))
    with pytest.raises(LBRError, match=r"already has the bottleneck token <\|lbr_0\|>.*load_model"):
        with_bottleneck_tokens(model.tokenizer, 2)
    model.save_pretrained(str(tmp_path))
    with pytest.raises(LBRError, match=r"already has the bottleneck token"):
        build_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(("kind", "name"), [("bert", "BertModel"), ("t5", "T5ForConditionalGeneration")])
def test_a_base_that_is_no_decoder_is_refused(tiny_base, kind, name):
    with pytest.raises(LBRError, match=rf"{name} is not a causal language model.*decoder-only") as caught:
        build_model(tiny_base(kind), device="cpu")
    assert caught.value.where == tiny_base(kind)


def test_a_base_without_a_named_architecture_is_looked_at(tiny_base, tmp_path, monkeypatch):
    shutil.copytree(tiny_base("t5"), tmp_path / "t5")
    config = tmp_path / "t5" / "config.json"
    config.write_text(config.read_text().replace("architectures", "unnamed"))
    with pytest.raises(LBRError, match="T5Config has no causal language model"):
        build_model(str(tmp_path / "t5"), device="cpu")
    # What is loaded as one may have no head all the same.
    monkeypatch.setattr("lbr_st.modules.causal_lm.AutoModelForCausalLM", AutoModel)
    with pytest.raises(LBRError, match="LlamaModel is not a decoder-only language model with a head"):
        build_model(tiny_base("llama"), device="cpu")


def test_a_tokenizer_that_changes_the_texts_tokens_is_refused():
    class Reverses:
        name_or_path = "odd"

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [0, 2, 1] if add_special_tokens else [1, 2]}

    with pytest.raises(LBRError, match=r"odd: cannot tell a text's own tokens.*\[0, 2, 1\]"):
        affixes(Reverses())


@pytest.mark.parametrize("options", [{"token_init": "zero"}, {"lora_rank": 0}])
def test_options_out_of_range_are_refused(tiny_base, options):
    with pytest.raises(LBRError, match=str(next(iter(options.values())))):
        new_model(tiny_base("llama"), **options)


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
    """Never a label, the new tokens need no rows of their own there; but none that is drawn anew at each load."""
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


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_unknown_head_is_refused(tiny_base, kind, monkeypatch):
    real = CausalBackbone.logits
    monkeypatch.setattr(CausalBackbone, "logits", lambda self, hidden: 1.1 * real(self, hidden))
    with pytest.raises(LBRError, match=r"head of \w+ForCausalLM is of a form that lbr-st does not know"):
        new_model(tiny_base(kind))


def test_a_head_of_several_layers_is_refused(tiny_base):
    backbone = backbone_of(new_model(tiny_base("llama-untied")))
    backbone.model.set_output_embeddings(torch.nn.Sequential(backbone.model.get_output_embeddings()))
    with pytest.raises(LBRError, match="is a Sequential, not a plain linear layer"):
        backbone.check_head()


def test_an_uncapped_head_would_be_noticed(tiny_base, monkeypatch):
    def uncapped(self, hidden):
        return replace(self.head, softcap=None).logits(hidden)

    monkeypatch.setattr(CausalBackbone, "logits", uncapped)
    with pytest.raises(LBRError, match="does not know"):
        new_model(tiny_base("gemma2"))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_full_training_changes_the_new_rows_and_the_rest(tiny_base, kind):
    model = new_model(tiny_base(kind))
    backbone = backbone_of(model)
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    new = rows(model, backbone.bottleneck_ids)
    train(model)
    assert (rows(model, backbone.bottleneck_ids) != new).any(dim=1).all()
    same = [name for name, p in backbone.model.named_parameters() if torch.equal(p, before[name])]
    assert same == []


@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_lora_changes_the_new_rows_and_no_weight_of_the_base(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind), lora_rank=4)
    backbone = backbone_of(model)
    adapters = ("lora_", "trainable_tokens_delta")
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    vocabulary = range(min(backbone.bottleneck_ids))
    old, new = rows(model, vocabulary), rows(model, backbone.bottleneck_ids)
    train(model, bottleneck)
    assert (rows(model, backbone.bottleneck_ids) != new).any(dim=1).all()
    assert torch.equal(rows(model, vocabulary), old)
    changed = {name for name, p in backbone.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(any(a in name for a in adapters) for name in changed)
    frozen = {name for name, p in backbone.model.named_parameters() if not p.requires_grad}
    assert all(not any(a in name for a in adapters) for name in frozen)
    # Adapters are in the decoder alone, not on the head.
    assert not any("lora_" in name for name, _ in backbone.model.get_output_embeddings().named_parameters())


# --- saved and loaded -------------------------------------------------------------------------------------------------

BUILDS = {
    "full": {},
    "lora": {"lora_rank": 4},
    "lora-projection": {"lora_rank": 4, "projection_dim": 8},
}


@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt-neox"])
def test_save_and_load(tiny_base, tmp_path, kind, build, bottleneck):
    fresh = encode(new_model(tiny_base(kind), **BUILDS[build]))
    model = new_model(tiny_base(kind), **BUILDS[build])
    train(model, bottleneck)
    trained, ids = encode(model), backbone_of(model).bottleneck_ids
    assert (trained - fresh).abs().max() > 1e-3
    model.save_pretrained(str(tmp_path / "model"))

    loaded = load_model(tmp_path / "model", device="cpu")
    torch.testing.assert_close(encode(loaded), trained, rtol=0, atol=1e-6)
    assert torch.equal(rows(loaded, ids), rows(model, ids))
    assert not torch.equal(rows(loaded, ids), rows(new_model(tiny_base(kind), **BUILDS[build]), ids))
    assert backbone_of(loaded).bottleneck_ids == ids
    assert backbone_of(loaded).affixes == (1, K)
    assert backbone_of(loaded).base == tiny_base(kind)
    assert loaded.max_seq_length == model.max_seq_length
    assert loaded.prompts == model.prompts
    assert trained_bottleneck(loaded) == bottleneck
    assert has_lora(backbone_of(loaded).model) == build.startswith("lora")
    for name, tensor in pooler_of(model).state_dict().items():
        assert torch.equal(pooler_of(loaded).state_dict()[name], tensor)
    train(loaded, bottleneck, steps=1)
    assert (encode(loaded) - trained).abs().max() > 1e-4


@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("llama", "full"),
        ("llama", "lora"),
        ("llama-untied", "full"),
        ("llama-untied", "lora"),
        ("gpt-neox", "lora"),
    ],
)
@pytest.mark.parametrize("spare_rows", [0, 7])
def test_the_head_is_loaded_as_it_was(tiny_base, tmp_path, kind, build, bottleneck, spare_rows):
    model = new_model(tiny_base(kind, spare_rows=spare_rows), **BUILDS[build])
    train(model, bottleneck)
    model.save_pretrained(str(tmp_path / "model"))
    loaded = load_model(tmp_path / "model", device="cpu")
    columns = [model.preprocess(TEXTS), model.preprocess(["salt", "acid", "an enzyme"])]
    values = [
        {name: term.item() for name, term in IBGenerativeLoss(m, bottleneck=bottleneck).eval()(columns).items()}
        for m in (model, loaded)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_an_adapter_holds_rows_not_a_vocabulary(tiny_base, tmp_path):
    from safetensors.torch import load_file

    model = new_model(tiny_base("llama"), lora_rank=4)
    train(model)
    model.save_pretrained(str(tmp_path / "model"))
    state = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert max(tensor.shape[0] for tensor in state.values()) <= 48
    assert not (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["llama", "llama-untied"])
@pytest.mark.parametrize(
    "lost",
    ["lora_A", "lora_B", "token_adapter"],
)
def test_an_adapter_with_a_weight_missing_is_refused(tiny_base, tmp_path, kind, lost):
    from safetensors.torch import load_file, save_file

    model = new_model(tiny_base(kind), lora_rank=4)
    model.save_pretrained(str(tmp_path / "model"))
    file = tmp_path / "model" / "adapter_model.safetensors"
    state = load_file(file)
    state.pop(next(name for name in state if lost in name))
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(LBRError, match="does not fit its base: 1 weights missing") as caught:
        load_model(tmp_path / "model", device="cpu")
    assert caught.value.where == str(file)


def test_a_variational_pooler_is_saved(tiny_base, tmp_path):
    model = new_model(tiny_base("llama"))
    IBGenerativeLoss(model, bottleneck="embedding", rate_weight=0.1)
    model.save_pretrained(str(tmp_path / "model"))
    loaded = load_model(tmp_path / "model", device="cpu")
    assert pooler_of(loaded).variational
    assert pooler_of(loaded).num_soft_tokens == K
    torch.testing.assert_close(encode(loaded), encode(model), rtol=0, atol=1e-6)


def test_foreign_code_is_not_loaded(tiny_base, tmp_path):
    with pytest.raises(LBRError, match=r"modules\.json"):
        load_model(tiny_base("llama"))
    new_model(tiny_base("llama")).save_pretrained(str(tmp_path / "model"))
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit")
    with pytest.raises(LBRError, match="Python code"):
        load_model(tmp_path / "model")
    (tmp_path / "model" / "evil.py").unlink()
    listing = tmp_path / "model" / "modules.json"
    listing.write_text(listing.read_text().replace("lbr_st.modules", "evil.modules"))
    with pytest.raises(LBRError, match=r"evil\.modules"):
        load_model(tmp_path / "model")


# --- merged and released ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_merged_equals_unmerged(tiny_base, kind):
    model = new_model(tiny_base(kind), lora_rank=4)
    train(model)
    backbone = backbone_of(model)
    ids = torch.randint(0, 300, (2, 9))
    with torch.no_grad():
        unmerged, logits = encode(model), backbone.model(input_ids=ids).logits
        merge_lora(backbone.model)
        torch.testing.assert_close(encode(model), unmerged, rtol=0, atol=1e-5)
        torch.testing.assert_close(backbone.model(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-5)
    assert not has_lora(backbone.model)
    plain = AutoConfig.from_pretrained(tiny_base(kind)).tie_word_embeddings
    embeddings, head = backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight
    assert (embeddings is head) == plain
    assert plain == (kind not in ("llama-untied", "mistral", "gpt-neox"))
    assert not any("lora" in name or "adapter" in name for name in backbone.model.state_dict())


def test_broken_adapters_are_not_merged(tiny_base):
    model = new_model(tiny_base("llama"), lora_rank=4)
    lm = backbone_of(model).model
    next(p for name, p in lm.named_parameters() if "lora_A" in name).data.fill_(float("nan"))
    with pytest.raises(LBRError, match="broken"):
        merge_lora(lm)


@pytest.mark.parametrize("build", ["full", "lora"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_stock_modules_on_the_same_weights_give_the_same_embeddings(tiny_base, tmp_path, kind, build):
    model = new_model(tiny_base(kind), **BUILDS[build])
    train(model)
    expected = encode(model)
    if build == "lora":
        merge_lora(backbone_of(model).model)
    backbone_of(model).model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    stock = SentenceTransformer(
        modules=[Transformer(str(tmp_path)), Pooling(32, "lasttoken"), Normalize()], device="cpu"
    )
    found = encode(stock)
    assert torch.cosine_similarity(found, expected).min() >= 0.9999
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if build == "lora" else 1e-6)
