"""IBGenerativeLoss: stage 1, generative learning through an information bottleneck."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast, get_args

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lbr_st.bottleneck.passes import (
    Bottleneck,
    Prediction,
    Reader,
    backbone_of,
    pooler_of,
    read,
    require_bottleneck,
    through_attention,
    through_embedding,
    unhindered,
)
from lbr_st.bottleneck.rows import Targets, assemble, targets_of
from lbr_st.compute import in_forward_of, unwrapped
from lbr_st.errors import LBRError
from lbr_st.model.lora import has_lora
from lbr_st.model.mask import Segment
from lbr_st.model.nll import kl_sum, nll_each, nll_sum

CITATION = """@article{liang2026learn,
  archiveprefix = {arXiv},
  author = {Liang, Xiaoyu and Peng, Yuchen and Luo, Jiale and Wang, Wenhao and Hu, Haoji and Zhou, Xincheng},
  eprint = {2601.11124},
  journal = {arXiv preprint arXiv:2601.11124},
  primaryclass = {cs.IR},
  title = {Learn Before Represent: Bridging Generative and Contrastive Learning for Domain-Specific LLM Embeddings},
  url = {https://arxiv.org/abs/2601.11124},
  year = {2026},
}"""


class IBGenerativeLoss(nn.Module):
    """Generative learning constrained by an information bottleneck ("learn" of Learn Before Represent).

    The model reads a context, compresses it into its k bottleneck tokens, and generates the target from the
    bottleneck alone: attention is causal, and no target token attends to a context token. A later contrastive stage
    refines the state of the last of these bottleneck tokens. The softmax is over the tokens that texts are made of;
    bottleneck tokens are never predicted.

    Args:
        model: A training model from :func:`lbr_st.build_model`.
        bottleneck: ``"attention"``: one pass in which a target reads the bottleneck's keys and values at every layer.
            ``"embedding"``: a second pass decodes from the pooled embedding, mapped to soft prompt vectors by a
            linear bridge (added to the pooler if it has none). Stricter, and twice the passes. ``"none"``: plain
            causal language modelling, to compare with: a target sees its whole context, and is predicted from the
            context's last token on. It needs no bottleneck tokens and ignores those that the model has.
        context_weight: Weight of the context's own next-token loss; 0 leaves it out. With ``bottleneck="none"``, the
            weight of a context token next to a target token in *one* mean over both; 1 is the ordinary loss.
        rate_weight: Weight of the variational information-bottleneck term, KL(q(z|c) ‖ N(0, I)); 0 leaves it out. Needs
            ``bottleneck="embedding"``: only there is the target decoded from z.
        target_dropout: Share of the target's input tokens replaced by the padding token while training, so that the
            decoder cannot lean on the target's prefix and ignore the bottleneck. Not for ``"none"``.
        bag_weight: Weight of a bag-of-words term: the state that becomes the embedding predicts all of the target's
            tokens by itself. Not for ``"none"``.
        distil_weight: Weight of a distillation term: next to the true tokens, the prediction of each target token from
            the bottleneck follows the prediction of a reader, which sees the whole context. KL(reader ‖ prediction),
            over all tokens that texts are made of. It costs one more pass, without gradients, and says most where the
            target does not repeat the context. With ``"none"`` the model follows itself, or its base.
        distil_reader: Who reads. ``"self"``: the model as it stands at each step; ``"base"``: without its adapters.
        max_target_tokens: Predict only this many tokens of each target; None for all.
        packed: Run all examples of a batch in one row, so that nothing is spent on padding; False pads each to the
            longest, with the same loss and gradients.

    References:
        - Learn Before Represent: https://arxiv.org/abs/2601.11124. Only the two stages and the bottleneck inside
          generative learning are the paper's; the mask, the two bottlenecks and the weights are our choices.
        - Variational information bottleneck: https://arxiv.org/abs/1612.00410
        - Bag of words from the embedding: https://arxiv.org/abs/2312.15503 (LLaRA)
        - Distillation of the whole context's reader: https://arxiv.org/abs/2511.17129 (LLM2Comp). Who reads, and the
          true tokens next to it, are our choice.
        - Word dropout against an ignored latent: https://arxiv.org/abs/1511.06349

    Requirements:
        1. A model with a :class:`~lbr_st.model.backbone.CausalBackbone` and a
           :class:`~lbr_st.model.pooler.BottleneckPooler`.
        2. Contexts with the prompt that ``encode_query`` or ``encode_document`` will put before them.
        3. A target in every row. With ``bottleneck="none"`` it may be empty: the context is then a whole text, learnt
           once, with <eos> as its only target token. :func:`lbr_st.learn` gives texts to reconstruct in this form.

    Inputs:
        +---------------------------+--------+
        | Texts                     | Labels |
        +===========================+========+
        | (context, target) pairs   | none   |
        +---------------------------+--------+

    Returns of ``forward``:
        A dict of weighted scalar terms, which Sentence Transformers adds up and logs: ``target``, ``bag``, ``distil``
        and ``context`` in nats per token (means over the batch's tokens), ``rate`` in nats per example. With
        ``bottleneck="none"``, ``target`` and ``context`` are the two shares of the one weighted mean.

    Several batches in one optimiser step:
        A trainer averages the losses of accumulated batches and of several processes. A mean of means over unequal
        numbers of tokens is not the mean over the tokens. :func:`lbr_st.learn` counts them first (:meth:`counts`) and
        divides every sum by the same number (:attr:`shared_counts`), so that 4 batches of 2 are one batch of 8. Plain
        ``SentenceTransformerTrainer`` does not: there a token of a batch with few tokens weighs more.

    Recommendations:
        - Watch the *bottleneck gain* (:class:`~lbr_st.bottleneck.gain.BottleneckGainEvaluator`): at zero the decoder
          ignores the bottleneck, however low the loss. Start with short targets and a large learning rate for the
          new token rows.

    Raises:
        LBRError: An option is out of range, the model is not a training model or has no bottleneck tokens, the base is
            to read and the model has no adapters, a context or target is empty, or the first batch has the model's
            prompts in the second column and not in the first.

    Example:
        ::

            import lbr_st
            from datasets import Dataset
            from sentence_transformers import SentenceTransformerTrainer
            from lbr_st.losses import IBGenerativeLoss

            model = lbr_st.build_model("smollm2-135m", num_bottleneck_tokens=4)
            pairs = Dataset.from_dict({
                "context": ["query: aspirin"],
                "target": ["A member of the class of benzoic acids that is salicylic acid ..."],
            })
            trainer = SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=IBGenerativeLoss(model))
            trainer.train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        bottleneck: Bottleneck = "attention",
        context_weight: float = 0.1,
        rate_weight: float = 0.0,
        target_dropout: float = 0.0,
        bag_weight: float = 0.0,
        max_target_tokens: int | None = None,
        packed: bool = True,
        distil_weight: float = 0.0,
        distil_reader: Reader = "self",
    ) -> None:
        super().__init__()
        self.model = model
        self.bottleneck = bottleneck
        self.context_weight = context_weight
        self.rate_weight = rate_weight
        self.target_dropout = target_dropout
        self.bag_weight = bag_weight
        self.max_target_tokens = max_target_tokens
        self.packed = packed
        self.distil_weight = distil_weight
        self.distil_reader = distil_reader
        self.shared_counts: dict[str, float] | None = None
        """What each term's sum is divided by instead of this batch's own counts; a trainer sets it."""
        self.mini_batch_num_tokens: int | None = None
        """Most tokens that are run at once while training, with equal gradients; None for a whole batch. A trainer sets
        it, which adds the terms up: only their sum has a gradient."""
        self._check_options()
        vars(unwrapped(model))["prompts_checked"] = None  # which is done for the first batch of each loss
        backbone, pooler = backbone_of(model), pooler_of(model)
        if bottleneck != "none":
            require_bottleneck(model)
        if bottleneck == "embedding" and pooler.bridge is None:
            table = cast(Tensor, backbone.model.get_input_embeddings().weight).detach()
            scale = float(table.float().square().mean().sqrt())
            pooler.add_bridge(len(backbone.bottleneck_ids), scale)
            pooler.to(backbone.model.device)
        if rate_weight and not pooler.variational:
            pooler.add_noise()
            pooler.to(backbone.model.device)

    def _check_options(self) -> None:
        if self.bottleneck not in get_args(Bottleneck):
            raise LBRError(f"bottleneck is {self.bottleneck!r}.", fix='Choose "attention", "embedding" or "none".')
        if self.distil_reader not in get_args(Reader):
            raise LBRError(f"distil_reader is {self.distil_reader!r}.", fix='Choose "self" or "base".')
        for name in ("context_weight", "rate_weight", "bag_weight", "distil_weight"):
            if (weight := getattr(self, name)) < 0:
                raise LBRError(f"{name} is {weight}.", fix="It may not be negative; 0 leaves the term out.")
        if not 0 <= (share := self.target_dropout) < 1:
            raise LBRError(f"target_dropout is {share}.", fix="Give a share from 0 up to, not including, 1.")
        if self.rate_weight and self.bottleneck != "embedding":
            what = f"rate_weight is {self.rate_weight}, but without an embedding bottleneck nothing is decoded from z."
            raise LBRError(what, fix='Use bottleneck="embedding", or rate_weight=0.')
        if self.bottleneck == "none" and (share or self.bag_weight):
            what = f"target_dropout is {share} and bag_weight {self.bag_weight}, which serve a bottleneck."
            raise LBRError(what, fix='Set both to 0, or choose bottleneck="attention" or "embedding".')
        if self.distil_weight and self.distil_reader == "base" and not has_lora(backbone_of(self.model).model):
            what = 'distil_reader is "base", but the model has no adapters that could be left out to read as the base.'
            raise LBRError(what, fix='Build the model with lora_rank, or use distil_reader="self".')
        if self.max_target_tokens is not None and self.max_target_tokens < 1:
            raise LBRError(f"max_target_tokens is {self.max_target_tokens}.", fix="Give at least 1, or None for all.")

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the weighted loss terms of a batch of tokenised (context, target) columns."""
        columns = list(sentence_features)
        most = self.mini_batch_num_tokens if torch.is_grad_enabled() else None
        pieces = _pieces(columns, most) if most else []
        if len(pieces) < 2:
            return in_forward_of(self.model, self._terms, columns)
        before, self.shared_counts = self.shared_counts, self.shared_counts or self.counts(columns)
        terms: dict[str, Tensor] = {}
        try:
            trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
            total = _InPieces.apply(terms, self._terms, pieces, *trained)
        finally:
            self.shared_counts = before
        first = next(iter(terms))
        return {**terms, first: total - sum(term for name, term in terms.items() if name != first)}

    def _terms(self, columns: list[dict[str, Any]]) -> dict[str, Tensor]:
        # Read first, while nothing waits for the backward pass.
        known = self._read(columns) if self.distil_weight else None
        context, target, rate = self.predictions(columns)
        tokens, contexts = target.of(Segment.TARGET), context.of(Segment.CONTEXT)
        counts = self.shared_counts or self._counts(len(tokens[1]), len(contexts[1]), len(columns[0]["input_ids"]))
        # The mean of nothing is 0: contexts of one token, or an empty target after a cut context.
        counts = {term: count or 1 for term, count in counts.items()}
        backbone = backbone_of(self.model)
        terms = {"target": nll_sum(*tokens, backbone.head) / counts["target"]}
        if self.bag_weight:
            examples = target.rows.examples[target.rows.predicts == Segment.TARGET]
            likelihoods = backbone.head.logits(context.closing()).float().log_softmax(dim=-1)  # examples × vocabulary
            terms["bag"] = self.bag_weight * (-likelihoods[examples, tokens[1]].sum() / counts["target"])
        if known is not None:
            terms["distil"] = self.distil_weight * (kl_sum(tokens[0], known, backbone.head) / counts["target"])
        if self.context_weight:
            terms["context"] = self.context_weight * (nll_sum(*contexts, backbone.head) / counts["context"])
        if self.rate_weight and rate is not None:
            terms["rate"] = self.rate_weight * (rate.sum() / counts["rate"])
        return terms

    def counts(self, sentence_features: Iterable[dict[str, Any]]) -> dict[str, float]:
        """Return how many addends each term's sum has in a batch, from the token ids alone; ``forward`` divides by it.

        Predicted tokens for ``target`` (as for ``bag`` and ``distil``) and ``context`` (with ``bottleneck="none"`` one
        weighted number for both), and examples for ``rate``.
        """
        columns = list(sentence_features)
        contexts, targets = self._columns(columns)
        backbone = backbone_of(self.model)
        if self.bottleneck == "embedding":
            context = assemble(backbone, contexts, None)
            target = assemble(backbone, pooler_of(self.model).num_soft_tokens, targets)
        else:
            context = target = assemble(backbone, contexts, targets, bottleneck=self.bottleneck == "attention")
        return self._counts(
            int((target.predicts == Segment.TARGET).sum()),
            int((context.predicts == Segment.CONTEXT).sum()),
            len(columns[0]["input_ids"]),
        )

    def _counts(self, target: int, context: int, examples: int) -> dict[str, float]:
        whole = target + self.context_weight * context
        none = self.bottleneck == "none"
        return {"target": whole if none else target, "context": whole if none else context, "rate": examples}

    def predictions(self, sentence_features: Iterable[dict[str, Any]]) -> tuple[Prediction, Prediction, Tensor | None]:
        """Run the model; return what predicts the contexts, what predicts the targets, and the rate per example."""
        contexts, targets = self._columns(list(sentence_features))
        backbone = backbone_of(self.model)
        dropout = self.target_dropout if self.training else 0.0
        if self.bottleneck == "embedding":
            return through_embedding(self.model, contexts, targets, target_dropout=dropout, packed=self.packed)
        if self.bottleneck == "none":
            prediction = unhindered(backbone, contexts, targets, packed=self.packed)
        else:
            prediction = through_attention(backbone, contexts, targets, target_dropout=dropout, packed=self.packed)
        return prediction, prediction, None

    def _read(self, columns: list[dict[str, Any]]) -> Tensor:
        return read(backbone_of(self.model), *self._columns(columns), self.distil_reader, packed=self.packed)

    def _columns(self, columns: list[dict[str, Any]]) -> tuple[dict[str, Any], Targets]:
        if len(columns) != 2:
            what = f"IBGenerativeLoss takes two text columns, context and target; it was given {len(columns)}."
            raise LBRError(what, fix='Select them: dataset.select_columns(["context", "target"]).')
        contexts, features = columns
        whole = contexts if self.bottleneck == "none" else None
        backbone = backbone_of(self.model)
        return contexts, targets_of(backbone, features, max_tokens=self.max_target_tokens, contexts=whole)

    @torch.no_grad()
    def target_nll(self, sentence_features: Iterable[dict[str, Any]]) -> Tensor:
        """Return the negative log-likelihood of each target token, in nats, float32 of shape (count,); no gradients."""

        def run(columns: list[dict[str, Any]]) -> Tensor:
            return nll_each(*self.predictions(columns)[1].of(Segment.TARGET), backbone_of(self.model).head)

        return in_forward_of(self.model, run, list(sentence_features))

    def get_config_dict(self) -> dict[str, Any]:
        """Return the options, for the model card."""
        names = ["context_weight", "rate_weight", "target_dropout", "bag_weight", "max_target_tokens", "packed"]
        names += ["distil_weight", "distil_reader"]
        return {"bottleneck": self.bottleneck, **{name: getattr(self, name) for name in names}}

    @property
    def citation(self) -> str:
        """BibTeX entry of the method."""
        return CITATION


def _pieces(columns: list[dict[str, Any]], most_tokens: int) -> list[list[dict[str, Any]]]:
    """Cut a batch into runs of rows with at most so many tokens together; a longer row is a piece of its own."""
    lengths = sum(column["attention_mask"].sum(1) for column in columns)
    cuts, held = [0], 0
    for row, length in enumerate(lengths.tolist()):
        if held and held + length > most_tokens:
            cuts, held = [*cuts, row], 0
        held += length

    def cut(column: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
        width = int(column["attention_mask"][begin:end].sum(1).max())
        return {key: column[key][begin:end, :width] for key in ("input_ids", "attention_mask")}

    return [[cut(column, *ends) for column in columns] for ends in pairwise([*cuts, len(lengths)])]


class _InPieces(torch.autograd.Function):
    """The sum of a loss over pieces of a batch; each piece's gradients are taken before the next is run."""

    @staticmethod
    def forward(ctx: Any, terms: dict[str, Tensor], compute: Any, pieces: list[Any], *parameters: Tensor) -> Tensor:
        gradients: list[Tensor | None] = [None] * len(parameters)
        for piece in pieces:
            with torch.enable_grad():
                found = compute(piece)
                taken = torch.autograd.grad(sum(found.values()), parameters, allow_unused=True)
            terms |= {name: terms.get(name, 0) + term.detach() for name, term in found.items()}
            del found
            for number, new in enumerate(taken):
                old = gradients[number]
                gradients[number] = old if new is None else new if old is None else old.add_(new)
        ctx.gradients = gradients
        return cast(Tensor, sum(terms.values()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, None, *(None if one is None else one.mul_(upstream) for one in gradients)
