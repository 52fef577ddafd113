"""IBGenerativeLoss against a slow reference: one example at a time, no padding, the model's own head."""

import math

import pytest
import torch
from conftest import ARCHITECTURES
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from lbr_st.attention import Segment
from lbr_st.bottleneck import backbone_of, pooler_of
from lbr_st.build import build_model
from lbr_st.errors import LBRError
from lbr_st.losses import IBGenerativeLoss
from lbr_st.modules import CausalBackbone
from lbr_st.rows import IGNORE, assemble, targets_of
from lbr_st.token_nll import nll_each

K = 3
BOTTLENECKS = ["attention", "embedding"]
CONTEXTS = ["query: an acid", "document: the base of a salt and an ester", "x"]
TARGETS = ["a protein and an enzyme of the acid", "salt", "the base, an ester"]


def new_model(base: str, **options) -> SentenceTransformer:
    return build_model(base, num_bottleneck_tokens=K, device="cpu", **options).eval()


@pytest.fixture
def llama(tiny_base):
    return new_model(tiny_base("llama"))


@pytest.fixture(params=BOTTLENECKS)
def bottleneck(request):
    return request.param


def columns(model, contexts=CONTEXTS, targets=TARGETS):
    return [model.preprocess(list(contexts)), model.preprocess(list(targets))]


# --- the reference ----------------------------------------------------------------------------------------------------


def pieces(model, context: str, target: str) -> tuple[list[int], list[int], list[int]]:
    """Ids of a context, of the bottleneck and of a target, from the tokenizer alone."""
    with_bottleneck = model.tokenizer(context)["input_ids"]
    return with_bottleneck[:-K], with_bottleneck[-K:], model.tokenizer(target, add_special_tokens=False)["input_ids"]


def additive_mask(n: int, m: int, window: int | None) -> torch.Tensor:
    mask = torch.zeros(1, 1, n + K + m, n + K + m)
    for query in range(n + K + m):
        for key in range(n + K + m):
            hidden = key > query or (query >= n + K and key < n)
            if window is not None and query - key >= window:
                hidden = True
            if hidden and query != key:
                mask[0, 0, query, key] = -torch.inf
    return mask


def log_likelihoods(model, logits: torch.Tensor, positions: list[int], labels: list[int]) -> torch.Tensor:
    """Log-likelihoods over the tokens that texts are made of: bottleneck tokens, and rows above them, are none."""
    logits = logits[:, : min(backbone_of(model).bottleneck_ids)]
    found = [torch.log_softmax(logits[p], dim=-1)[i] for p, i in zip(positions, labels, strict=True)]
    return torch.stack(found) if found else torch.zeros(0)


def attention_reference(model, context: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood of each target token and <eos>, and of each context token but the first."""
    c, b, t = pieces(model, context, target)
    lm = backbone_of(model).model
    n, m = len(c), len(t)
    types, window = getattr(lm.config, "layer_types", None), getattr(lm.config, "sliding_window", None)
    if types and "sliding_attention" in types:
        mask = {"full_attention": additive_mask(n, m, None), "sliding_attention": additive_mask(n, m, window)}
    else:
        mask = additive_mask(n, m, window)
    logits = lm(
        input_ids=torch.tensor([c + b + t]),
        attention_mask=mask,
        position_ids=torch.arange(n + K + m)[None],
        use_cache=False,
    ).logits[0]
    own = log_likelihoods(model, logits, list(range(n + K - 1, n + K + m)), [*t, model.tokenizer.eos_token_id])
    return own, log_likelihoods(model, logits, list(range(n - 1)), c[1:])


def embedding_reference(model, context: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    c, b, t = pieces(model, context, target)
    lm, pooler = backbone_of(model).model, pooler_of(model)
    state = lm.base_model(input_ids=torch.tensor([c + b]), use_cache=False).last_hidden_state[0, -1]
    if pooler.projection is not None:
        state = pooler.projection(state)
    state = state / state.norm()
    soft = (pooler.bridge.weight @ state + pooler.bridge.bias).view(-1, pooler.hidden_dimension)
    assert len(soft) == K
    inputs = torch.cat([soft, lm.get_input_embeddings()(torch.tensor(t))])[None]
    logits = lm(inputs_embeds=inputs, use_cache=False).logits[0]
    own = log_likelihoods(model, logits, list(range(K - 1, K + len(t))), [*t, model.tokenizer.eos_token_id])
    of_context = lm(input_ids=torch.tensor([c]), use_cache=False).logits[0]
    return own, log_likelihoods(model, of_context, list(range(len(c) - 1)), c[1:])


REFERENCE = {"attention": attention_reference, "embedding": embedding_reference}


@torch.no_grad()
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_terms_equal_the_reference(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck, context_weight=0.3).eval()
    terms = loss(columns(model))
    found = [REFERENCE[bottleneck](model, c, t) for c, t in zip(CONTEXTS, TARGETS, strict=True)]
    target = -torch.cat([own for own, _ in found]).mean()
    context = -torch.cat([of_context for _, of_context in found]).mean()
    assert set(terms) == {"target", "context"}
    torch.testing.assert_close(terms["target"], target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["context"], 0.3 * context, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"projection_dim": 8}, {"lora_rank": 2}, {"token_init": "random"}])
def test_terms_equal_the_reference_for_every_way_to_build(tiny_base, bottleneck, options):
    model = new_model(tiny_base("llama", bos=False, pad=False, spare_rows=7), **options)
    loss = IBGenerativeLoss(model, bottleneck=bottleneck, context_weight=0.0).eval()
    found = [REFERENCE[bottleneck](model, c, t)[0] for c, t in zip(CONTEXTS, TARGETS, strict=True)]
    terms = loss(columns(model))
    assert set(terms) == {"target"}
    torch.testing.assert_close(terms["target"], -torch.cat(found).mean(), rtol=1e-5, atol=1e-5)


# --- batches and padding ----------------------------------------------------------------------------------------------


def per_token(loss, features) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        context, target, _ = loss.predictions(features)
        head = backbone_of(loss.model).head
        return nll_each(*target.of(Segment.TARGET), head), nll_each(*context.of(Segment.CONTEXT), head)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_batch_composition_does_not_matter(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck).eval()
    together = per_token(loss, columns(model))
    alone = [per_token(loss, columns(model, [c], [t])) for c, t in zip(CONTEXTS, TARGETS, strict=True)]
    for index in (0, 1):
        one_by_one = torch.cat([pair[index] for pair in alone])
        torch.testing.assert_close(together[index], one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_left_padding_does_not_matter(tiny_base, kind, bottleneck):
    model = new_model(tiny_base(kind))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck).eval()
    right = per_token(loss, columns(model))
    model.tokenizer.padding_side = "left"
    features = columns(model)
    assert features[0]["attention_mask"][0, 0] == 0
    left = per_token(loss, features)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# --- labels -----------------------------------------------------------------------------------------------------------


def rows_of(model, contexts=CONTEXTS, targets=TARGETS, **options):
    backbone = backbone_of(model)
    context, target = columns(model, contexts, targets)
    return assemble(backbone, context, targets_of(backbone, target, **options), packed=False)


def target_lists(model, targets, **options) -> tuple[list[list[int]], list[list[int]]]:
    """Input ids and labels of each target, as lists."""
    found = targets_of(backbone_of(model), model.preprocess(targets), **options)
    labels = [ids[keep].tolist() for ids, keep in zip(found.tokens, found.keep, strict=True)]
    return [ids[:-1] for ids in labels], labels


def test_a_row_written_out(llama):
    rows = rows_of(llama, ["acid salt"], ["base"])
    c, b, t = pieces(llama, "acid salt", "base")
    eos = llama.tokenizer.eos_token_id
    assert c[0] == llama.tokenizer.bos_token_id
    assert eos not in c + t
    assert rows.input_ids.tolist() == [c + b + t]
    kinds = [Segment.CONTEXT] * len(c) + [Segment.BOTTLENECK] * K + [Segment.TARGET] * len(t)
    assert rows.segments.tolist() == [kinds]
    assert rows.labels.tolist() == [[*c[1:], IGNORE, *[IGNORE] * (K - 1), *t, eos]]


def test_bottleneck_tokens_are_never_labels(llama):
    rows = rows_of(llama)
    bottleneck = backbone_of(llama).bottleneck_ids
    assert not torch.isin(rows.labels, torch.tensor(bottleneck)).any()
    # And a bottleneck position predicts nothing, but for the last, which predicts the target's first token.
    for row, target in enumerate(TARGETS):
        at = (rows.segments[row] == Segment.BOTTLENECK).nonzero().flatten()
        first = llama.tokenizer(target, add_special_tokens=False)["input_ids"][0]
        assert rows.labels[row, at].tolist() == [IGNORE] * (K - 1) + [first]


def test_a_text_that_spells_a_bottleneck_token_makes_it_no_label(llama):
    rows = rows_of(llama, ["x"], ["salt <|lbr_0|> acid"])
    assert not torch.isin(rows.labels, torch.tensor(backbone_of(llama).bottleneck_ids)).any()


def test_targets_bring_no_begin_token_of_their_own(llama):
    inputs, _ = target_lists(llama, TARGETS)
    assert all(llama.tokenizer.bos_token_id not in ids for ids in inputs)


def test_max_target_tokens_cuts_and_drops_eos(llama):
    eos = llama.tokenizer.eos_token_id
    full = [llama.tokenizer(t, add_special_tokens=False)["input_ids"] for t in TARGETS]
    limit = len(full[1])
    assert len(full[0]) > limit
    inputs, labels = target_lists(llama, TARGETS, max_tokens=limit)
    assert labels[0] == full[0][:limit]  # cut: the text goes on, so no <eos>
    assert inputs[0] == full[0][: limit - 1]
    assert labels[1] == [*full[1], eos]  # fits exactly
    assert inputs[1] == full[1]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_target_tokens_in_the_loss(llama, bottleneck, limit):
    loss = IBGenerativeLoss(llama, bottleneck=bottleneck, max_target_tokens=limit).eval()
    nll, _ = per_token(loss, columns(llama))
    reference = []
    for context, target in zip(CONTEXTS, TARGETS, strict=True):
        with torch.no_grad():
            own, _ = REFERENCE[bottleneck](llama, context, target)
        fits = len(own) - 1 <= limit  # the last of them is <eos>
        reference.append(own if fits else own[:limit])
    torch.testing.assert_close(nll, -torch.cat(reference), rtol=1e-5, atol=1e-5)


def test_a_target_cut_by_the_tokenizer_has_no_eos(tiny_base):
    model = new_model(tiny_base("llama"), max_seq_length=12)
    _, labels = target_lists(model, [" ".join(TARGETS), "salt"])
    eos = model.tokenizer.eos_token_id
    assert len(labels[0]) == 12 - K - 1
    assert eos not in labels[0]
    assert labels[1][-1] == eos


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


def test_target_dropout_is_for_training_only(llama, bottleneck):
    plain = IBGenerativeLoss(llama, bottleneck=bottleneck)
    loss = IBGenerativeLoss(llama, bottleneck=bottleneck, target_dropout=0.5)
    features = columns(llama)
    expected, _ = per_token(plain.eval(), features)
    assert torch.equal(per_token(loss.eval(), features)[0], expected)
    torch.manual_seed(1)
    dropped, _ = per_token(loss.train(), features)
    assert dropped.shape == expected.shape
    assert not torch.allclose(dropped, expected)


def test_target_dropout_hides_inputs_and_keeps_labels(llama, bottleneck, monkeypatch):
    ran = []
    real = CausalBackbone.hidden_states

    def spy(self, input_ids, segments, *args, **options):
        ran.append((input_ids, segments))
        return real(self, input_ids, segments, *args, **options)

    monkeypatch.setattr(CausalBackbone, "hidden_states", spy)
    loss = IBGenerativeLoss(llama, bottleneck=bottleneck, target_dropout=0.5).train()
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


def test_an_empty_target_is_named(llama, bottleneck):
    loss = IBGenerativeLoss(llama, bottleneck=bottleneck)
    with pytest.raises(LBRError, match=r"row 1.*target is empty"):
        loss(columns(llama, ["x", "y"], ["salt", ""]))


@pytest.mark.parametrize("bos", [True, False])
def test_an_empty_context_is_named(tiny_base, bottleneck, bos):
    model = new_model(tiny_base("llama", bos=bos))
    loss = IBGenerativeLoss(model, bottleneck=bottleneck)
    with pytest.raises(LBRError, match=r"row 2.*context is empty"):
        loss(columns(model, ["x", "y", ""], TARGETS))


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_columns_is_refused(llama, count):
    with pytest.raises(LBRError, match=f"two text columns.*given {count}"):
        IBGenerativeLoss(llama)((columns(llama) * 2)[:count])


def test_features_of_a_foreign_tokenizer_are_refused(llama, tiny_base, bottleneck):
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_base("llama"))
    context = dict(plain(CONTEXTS, padding=True, return_tensors="pt"))
    with pytest.raises(LBRError, match=r"row 0.*does not end with the bottleneck tokens"):
        IBGenerativeLoss(llama, bottleneck=bottleneck)([context, llama.preprocess(TARGETS)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": "magic"}, "magic.*attention"),
        ({"context_weight": -0.1}, "negative"),
        ({"bottleneck": "embedding", "rate_weight": -1.0}, "negative"),
        ({"rate_weight": 0.1}, "attention.*embedding"),
        ({"target_dropout": 1.0}, "target_dropout is 1.0"),
        ({"target_dropout": -0.5}, "target_dropout is -0.5"),
        ({"max_target_tokens": 0}, "max_target_tokens is 0"),
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


def test_the_bag_trains_the_rows_of_the_bottleneck(llama):
    features = columns(llama)
    loss = IBGenerativeLoss(llama, context_weight=0.0, bag_weight=1.0)
    loss(features)["bag"].backward()
    gradient = backbone_of(llama).model.get_input_embeddings().weight.grad[backbone_of(llama).bottleneck_ids]
    assert gradient.abs().sum(dim=1).min() > 0


# --- as a plain Sentence Transformers loss ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, {"target", "context"}),
        ({"bottleneck": "embedding", "rate_weight": 0.01, "target_dropout": 0.2}, {"target", "context", "rate"}),
        ({"context_weight": 0.0, "max_target_tokens": 4}, {"target"}),
        ({"bag_weight": 0.5}, {"target", "bag", "context"}),
    ],
)
def test_trains_in_the_plain_trainer_and_logs_each_term(llama, tmp_path, options, terms):
    loss = IBGenerativeLoss(llama, **options)
    before = backbone_of(llama).model.get_input_embeddings().weight.detach().clone()
    args = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    pairs = Dataset.from_dict({"context": CONTEXTS, "target": TARGETS})
    trainer = SentenceTransformerTrainer(model=llama, args=args, train_dataset=pairs, loss=loss)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert {key for key in entry if key in ("target", "bag", "context", "rate")} == terms
        assert sum(entry[term] for term in terms) == pytest.approx(entry["loss"], rel=1e-3)
    after = backbone_of(llama).model.get_input_embeddings().weight.detach()
    assert (after[backbone_of(llama).bottleneck_ids] != before[backbone_of(llama).bottleneck_ids]).any(dim=1).all()
