"""The model trained, fully or by LoRA; saved, loaded, merged and released."""

import pytest
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file
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


def terms(model, bottleneck) -> dict[str, float]:
    columns = [model.preprocess(TEXTS), model.preprocess(["salt", "acid", "an enzyme"])]
    return {name: term.item() for name, term in IBGenerativeLoss(model, bottleneck).eval()(columns).items()}


@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("kind", "spare_rows"), [("llama", 0), ("llama", 7), ("llama-untied", 7), ("gpt-neox", 0)])
def test_save_and_load(tiny_base, tmp_path, kind, spare_rows, build, bottleneck):
    base = tiny_base(kind, spare_rows=spare_rows)
    model = new_model(base, **BUILDS[build])
    fresh, ids = encode(model), backbone_of(model).bottleneck_ids
    new = rows(model, ids)
    train(model, bottleneck)
    trained = encode(model)
    assert (trained - fresh).abs().max() > 1e-3
    model.save_pretrained(str(tmp_path / "model"))

    loaded = load_model(tmp_path / "model", device="cpu")
    torch.testing.assert_close(encode(loaded), trained, rtol=0, atol=1e-6)
    assert terms(loaded, bottleneck) == pytest.approx(terms(model, bottleneck), abs=1e-5)  # the head is loaded, too
    assert torch.equal(rows(loaded, ids), rows(model, ids))
    assert not torch.equal(rows(loaded, ids), new)
    assert backbone_of(loaded).bottleneck_ids == ids
    assert backbone_of(loaded).affixes == (1, K)
    assert backbone_of(loaded).base == base
    assert loaded.max_seq_length == model.max_seq_length
    assert loaded.prompts == model.prompts
    assert trained_bottleneck(loaded) == bottleneck
    assert has_lora(backbone_of(loaded).model) == build.startswith("lora")
    for name, tensor in pooler_of(model).state_dict().items():
        assert torch.equal(pooler_of(loaded).state_dict()[name], tensor)
    train(loaded, bottleneck, steps=1)
    assert (encode(loaded) - trained).abs().max() > 1e-4


@pytest.mark.parametrize("lost", ["lora_A", "lora_B", "token_adapter"])
def test_an_adapter_holds_rows_and_with_a_weight_missing_is_refused(tiny_base, tmp_path, lost):
    new_model(tiny_base("llama"), lora_rank=4).save_pretrained(str(tmp_path / "model"))
    file = tmp_path / "model" / "adapter_model.safetensors"
    state = load_file(file)
    assert max(tensor.shape[0] for tensor in state.values()) <= 48  # rows, not a vocabulary
    assert not file.with_name("model.safetensors").exists()
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


def test_models_saved_before_the_classes_moved_are_loaded(tiny_base, tmp_path):
    model = new_model(tiny_base("llama"))
    model.save_pretrained(str(tmp_path / "model"))
    listing = tmp_path / "model" / "modules.json"
    written = listing.read_text()
    older = written.replace("lbr_st.model.backbone", "lbr_st.modules.causal_backbone")
    older = older.replace("lbr_st.model.pooler", "lbr_st.modules.bottleneck_pooler")
    assert older.count("lbr_st.modules") == 2
    listing.write_text(older.replace("base.modules.normalize", "sentence_transformer.modules"))
    torch.testing.assert_close(encode(load_model(tmp_path / "model", device="cpu")), encode(model), rtol=0, atol=1e-6)


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
        modules=[Transformer(str(tmp_path)), Pooling(32, "lasttoken"), Normalize()],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        device="cpu",
    )
    found = encode(stock)
    assert torch.cosine_similarity(found, expected).min() >= 0.9999
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if build == "lora" else 1e-6)
