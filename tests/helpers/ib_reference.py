"""Stage 1's loss in the plainest form, a row at a time, without padding; and the models and texts it is tried on."""

import pytest
import torch
from tiny_models import K, new_model

from lbr_st.bottleneck.passes import backbone_of, pooler_of
from lbr_st.model.mask import Segment
from lbr_st.model.nll import nll_each

BOTTLENECKS = ["attention", "embedding"]
CONTEXTS = ["query: an acid", "document: the base of a salt and an ester", "x"]
TARGETS = ["a protein and an enzyme of the acid", "salt", "the base, an ester"]


@pytest.fixture
def llama(tiny_base):
    return new_model(tiny_base("llama"))


@pytest.fixture
def uncompiled_flex(monkeypatch):
    """FlexAttention in plain PyTorch: the same arithmetic without half a minute of tracing and C++."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(params=BOTTLENECKS)
def bottleneck(request):
    return request.param


def columns(model, contexts=CONTEXTS, targets=TARGETS):
    return [model.preprocess(list(contexts)), model.preprocess(list(targets))]


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


def attention_logits(model, context: str, target: str) -> torch.Tensor:
    """Logits of every position of context, bottleneck and target."""
    c, b, t = pieces(model, context, target)
    lm = backbone_of(model).model
    n, m = len(c), len(t)
    types, window = getattr(lm.config, "layer_types", None), getattr(lm.config, "sliding_window", None)
    if types and "sliding_attention" in types:
        mask = {"full_attention": additive_mask(n, m, None), "sliding_attention": additive_mask(n, m, window)}
    else:
        mask = additive_mask(n, m, window)
    return lm(
        input_ids=torch.tensor([c + b + t]),
        attention_mask=mask,
        position_ids=torch.arange(n + K + m)[None],
        use_cache=False,
    ).logits[0]


def attention_reference(model, context: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood of each target token and <eos>, and of each context token but the first."""
    c, _, t = pieces(model, context, target)
    n, m = len(c), len(t)
    logits = attention_logits(model, context, target)
    own = log_likelihoods(model, logits, list(range(n + K - 1, n + K + m)), [*t, model.tokenizer.eos_token_id])
    return own, log_likelihoods(model, logits, list(range(n - 1)), c[1:])


def embedding_logits(model, context: str, target: str) -> torch.Tensor:
    """Logits of every position of soft prompt and target."""
    c, b, t = pieces(model, context, target)
    lm, pooler = backbone_of(model).model, pooler_of(model)
    state = lm.base_model(input_ids=torch.tensor([c + b]), use_cache=False).last_hidden_state[0, -1]
    if pooler.projection is not None:
        state = pooler.projection(state)
    state = state / state.norm()
    soft = (pooler.bridge.weight @ state + pooler.bridge.bias).view(-1, pooler.hidden_dimension)
    assert len(soft) == K
    inputs = torch.cat([soft, lm.get_input_embeddings()(torch.tensor(t))])[None]
    return lm(inputs_embeds=inputs, use_cache=False).logits[0]


def embedding_reference(model, context: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    c, _, t = pieces(model, context, target)
    lm = backbone_of(model).model
    logits = embedding_logits(model, context, target)
    own = log_likelihoods(model, logits, list(range(K - 1, K + len(t))), [*t, model.tokenizer.eos_token_id])
    of_context = lm(input_ids=torch.tensor([c]), use_cache=False).logits[0]
    return own, log_likelihoods(model, of_context, list(range(len(c) - 1)), c[1:])


REFERENCE = {"attention": attention_reference, "embedding": embedding_reference}
LOGITS = {"attention": attention_logits, "embedding": embedding_logits}


def per_token(loss, features) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        context, target, _ = loss.predictions(features)
        head = backbone_of(loss.model).head
        return nll_each(*target.of(Segment.TARGET), head), nll_each(*context.of(Segment.CONTEXT), head)
