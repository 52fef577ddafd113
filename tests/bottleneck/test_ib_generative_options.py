"""Options of stage 1's loss, the bag of words, and what it refuses."""

import math

import pytest
import torch
from ib_reference import CONTEXTS, TARGETS, columns, log_likelihoods, per_token, pieces
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_models import K, new_model
from transformers import AutoTokenizer

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.errors import LBRError
from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.mask import Segment

# --- options ----------------------------------------------------------------------------------------------------------


def test_rate_is_the_closed_form(tiny_base):
    model = new_model(tiny_base("llama"), projection_dim=8)
    loss = IBGenerativeLoss(model, bottleneck="embedding", rate_weight=0.5)
    pooler = pooler_of(model)
    torch.nn.init.normal_(pooler.log_variance.weight, std=0.3)
    context = columns(model)[0]
    with torch.no_grad():
        states = backbone_of(model)(dict(context))["token_embeddings"]
        pooled = torch.stack([s[m.bool()][-1] for s, m in zip(states, context["attention_mask"], strict=True)])
        mean, spread = pooler.projection(pooled), (0.5 * pooler.log_variance(pooled)).exp()
        normal = torch.distributions.Normal
        expected = torch.distributions.kl_divergence(normal(mean, spread), normal(0.0, 1.0)).sum(dim=-1).mean()
        terms = loss.train()(columns(model))
    assert expected > 0.1
    torch.testing.assert_close(terms["rate"], 0.5 * expected, rtol=1e-5, atol=1e-5)
    assert "rate" not in loss.eval()(columns(model))


def test_noise_is_for_training_only(tiny_base):
    model = new_model(tiny_base("llama"))
    loss = IBGenerativeLoss(model, bottleneck="embedding", rate_weight=0.5)
    pooler_of(model).log_variance.bias.data.fill_(0.0)
    quiet = [loss.eval()(columns(model))["target"].item() for _ in range(2)]
    noisy = [loss.train()(columns(model))["target"].item() for _ in range(2)]
    assert quiet[0] == quiet[1]
    assert noisy[0] != noisy[1]


def test_target_dropout_hides_inputs_and_keeps_labels_in_training_only(llama, bottleneck, monkeypatch):
    ran = []
    real = CausalBackbone.hidden_states

    def spy(self, input_ids, segments, *args, **options):
        ran.append((input_ids, segments))
        return real(self, input_ids, segments, *args, **options)

    monkeypatch.setattr(CausalBackbone, "hidden_states", spy)
    loss = IBGenerativeLoss(llama, bottleneck=bottleneck, target_dropout=0.5)
    quiet = per_token(loss.eval(), columns(llama))[0]
    assert torch.equal(quiet, per_token(IBGenerativeLoss(llama, bottleneck=bottleneck).eval(), columns(llama))[0])
    loss.train()
    target = "an acid of the base and a salt " * 6
    with torch.no_grad():
        _, prediction, _ = loss.predictions(columns(llama, ["x"], [target]))
    input_ids, segments = ran[-1]
    ids = torch.tensor(llama.tokenizer(target, add_special_tokens=False)["input_ids"])
    inputs = input_ids[segments == Segment.TARGET]
    hidden = inputs == llama.tokenizer.pad_token_id
    assert 0.2 < hidden.float().mean() < 0.8
    assert torch.equal(inputs[~hidden], ids[~hidden])
    assert not (input_ids[segments == Segment.CONTEXT] == llama.tokenizer.pad_token_id).any()
    assert prediction.of(Segment.TARGET)[1].tolist() == [*ids.tolist(), llama.tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gemma2"])
def test_uniform_logits_cost_the_log_of_the_vocabulary(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck, context_weight=1.0).eval()
    head = backbone_of(model).model.get_output_embeddings().weight
    torch.nn.init.zeros_(head)
    terms = loss(columns(model))
    size = min(backbone_of(model).bottleneck_ids)  # bottleneck tokens are never predicted
    assert size == len(head) - K
    assert terms["target"].item() == pytest.approx(math.log(size), rel=1e-6)
    assert terms["context"].item() == pytest.approx(math.log(size), rel=1e-6)


def test_contexts_of_one_token_give_no_nan(tiny_base, bottleneck):
    model = new_model(tiny_base("llama", bos=False))
    terms = IBGenerativeLoss(model, bottleneck=bottleneck)(columns(model, ["x", "y"], ["salt", "acid"]))
    assert terms["context"].item() == 0
    assert torch.isfinite(terms["target"])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
def test_an_empty_text_is_named(tiny_base, bottleneck, bos):
    model = new_model(tiny_base("llama", bos=bos))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck)
    with pytest.raises(LBRError, match=r"row 1.*target is empty"):
        loss(columns(model, ["x", "y"], ["salt", ""]))
    with pytest.raises(LBRError, match=r"row 2.*context is empty"):
        loss(columns(model, ["x", "y", ""], TARGETS))


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_columns_is_refused(llama, count):
    with pytest.raises(LBRError, match=f"two text columns.*given {count}"):
        IBGenerativeLoss(llama)((columns(llama) * 2)[:count])


@pytest.mark.parametrize("kind", ["attention", "embedding", "none"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "measuring"])
def test_swapped_columns_are_refused(llama, kind, training):
    prompted = ["query: an acid", "document: a salt"]
    loss = IBGenerativeLoss(llama, bottleneck=kind)
    run = loss if training else loss.eval().target_nll
    with pytest.raises(LBRError, match=r'swapped.*select_columns\(\["context", "target"\]\)'):
        run(columns(llama, ["an acid", "a salt"], prompted))
    run(columns(llama, prompted, ["an acid", "a salt"]))


@pytest.mark.parametrize(
    ("contexts", "targets"),
    [
        (["document: query: x", "document: x"], ["query: x", "query: x"]),  # texts that begin like a prompt
        (["an acid", "a salt"], ["query: x", "x"]),  # one of them by chance
        (["query: x", "x"], ["query: x", "query: y"]),
        (["an acid", "a salt"], ["the base", "the ester"]),  # no prompts at all
    ],
)
def test_other_columns_are_not_taken_for_swapped(llama, contexts, targets):
    assert IBGenerativeLoss(llama)(columns(llama, contexts, targets))["target"] > 0


def test_features_of_a_foreign_tokenizer_are_refused(llama, tiny_base, bottleneck):
    plain = AutoTokenizer.from_pretrained(tiny_base("llama"))
    context = dict(plain(CONTEXTS, padding=True, return_tensors="pt"))
    with pytest.raises(LBRError, match=r"row 0.*does not end with the bottleneck tokens"):
        IBGenerativeLoss(llama, bottleneck=bottleneck)([context, llama.preprocess(TARGETS)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": "magic"}, "magic.*attention"),
        ({"context_weight": -0.1}, "context_weight is -0.1.*negative"),
        ({"bottleneck": "embedding", "rate_weight": -1.0}, "rate_weight is -1.0.*negative"),
        ({"rate_weight": 0.1}, "rate_weight is 0.1.*embedding"),
        ({"target_dropout": 1.0}, "target_dropout is 1.0"),
        ({"target_dropout": -0.5}, "target_dropout is -0.5"),
        ({"bottleneck": "none", "target_dropout": 0.1}, "target_dropout is 0.1"),
        ({"bottleneck": "none", "bag_weight": 0.1}, "bag_weight 0.1"),
        ({"bottleneck": "none", "rate_weight": 0.1}, "rate_weight is 0.1"),
        ({"max_target_tokens": 0}, "max_target_tokens is 0"),
        ({"distil_weight": -0.1}, "distil_weight is -0.1.*negative"),
        ({"distil_reader": "other"}, "distil_reader is 'other'.*base"),
        ({"distil_weight": 0.1, "distil_reader": "base"}, "no adapters.*lora_rank"),
    ],
)
def test_options_out_of_range_are_refused(llama, options, message):
    with pytest.raises(LBRError, match=message):
        IBGenerativeLoss(llama, **options)
    assert pooler_of(llama).bridge is None  # and nothing was added to the model on the way


def test_a_model_in_stock_form_is_refused(tiny_base):
    stock = SentenceTransformer(modules=[Transformer(tiny_base("llama")), Pooling(32, "lasttoken")], device="cpu")
    with pytest.raises(LBRError, match=r"no CausalBackbone.*build_model"):
        IBGenerativeLoss(stock)


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_bag_is_the_likelihood_of_each_target_token_from_the_bottleneck_alone(tiny_base, bottleneck, kind, packed):
    model = new_model(tiny_base(kind))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck, context_weight=0.2, bag_weight=0.5, packed=packed).eval()
    terms, found = loss(columns(model)), []
    for context, target in zip(CONTEXTS, TARGETS, strict=True):
        c, b, t = pieces(model, context, target)
        logits = backbone_of(model).model(input_ids=torch.tensor([c + b]), use_cache=False).logits[0]
        labels = [*t, model.tokenizer.eos_token_id]
        found.append(log_likelihoods(model, logits, [len(c) + K - 1] * len(labels), labels))
    assert set(terms) == {"target", "bag", "context"}
    torch.testing.assert_close(terms["bag"], -0.5 * torch.cat(found).mean(), rtol=1e-5, atol=1e-5)
