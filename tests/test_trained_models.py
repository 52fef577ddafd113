"""The model trained, fully or by LoRA; saved, loaded, merged and released."""

import pytest
import torch
from conftest import ARCHITECTURES
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tiny_models import TEXTS, K, encode, new_model, rows, train
from transformers import AutoConfig

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of, pooler_of, trained_bottleneck
from lbr_st.errors import LBRError
from lbr_st.model.load import load_model
from lbr_st.model.lora import has_lora, merge_lora

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
    listing = tmp_path / "model" / "modules.json"
    written = listing.read_text()
    listing.write_text(written.replace("lbr_st.model", "evil.model"))
    with pytest.raises(LBRError, match=r"evil\.modules"):
        load_model(tmp_path / "model")
    # The classes move within the package; a folder of either time is read.
    moved = written.replace("modules.causal_backbone", "model.backbone")
    listing.write_text(moved.replace("modules.bottleneck_pooler", "model.pooler"))
    load_model(tmp_path / "model", device="cpu")


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
