"""TokenBudgetRankingLoss: multiple negatives ranking whose memory is bounded by tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from lbr_st.compute import unwrapped
from lbr_st.model.backbone import CausalBackbone
from lbr_st.training.teacher import Teacher


class TokenBudgetRankingLoss(CachedMultipleNegativesRankingLoss):
    """Sentence Transformers' multiple negatives ranking loss, cached only for batches that are too large to run whole.

    The loss and its gradients are always those of
    :class:`~sentence_transformers.losses.MultipleNegativesRankingLoss`. A batch of up to ``mini_batch_num_tokens``
    tokens, all columns together, is embedded once. A larger one is embedded twice (GradCache), in pieces of up to that
    many tokens: only the activations of one piece are held at a time.

    Args:
        model: The model in training.
        scale: Multiplies the similarities; one divided by the temperature.
        mini_batch_num_tokens: Most tokens, padding not counted, whose activations are held at once; None for no limit.
        teacher: What a teacher said of the texts (:func:`lbr_st.training.teacher.ask`). The KL divergence of our
            softmax at this scale from the teacher's, in nats, is then a part of the loss.
        teacher_weight: Share of that part, from 0 to 1.
        **options: Options of :class:`~sentence_transformers.losses.CachedMultipleNegativesRankingLoss`, such as
            ``gather_across_devices``: also take the other processes' documents as negatives, with gradients.

    References:
        - Efficient Natural Language Response Suggestion for Smart Reply, section 4.4: https://arxiv.org/abs/1705.00652
        - Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup: https://arxiv.org/abs/2101.06983
        - Conventional Contrastive Learning Often Falls Short: https://arxiv.org/abs/2505.19274

    Inputs:
        (anchor, positive) pairs, or (anchor, positive, negative_1, ..., negative_n); no labels. With a teacher the
        labels are the digests of these texts, int64 of shape (batch, columns), as ``TokenCollator`` gives them.

    Example:
        ::

            loss = TokenBudgetRankingLoss(model, mini_batch_num_tokens=4096)
            args = SentenceTransformerTrainingArguments("run", prompts=model.prompts)
            SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=loss).train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        *,
        mini_batch_num_tokens: int | None = 4096,
        teacher: Teacher | None = None,
        teacher_weight: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(model, scale=scale, mini_batch_num_tokens=mini_batch_num_tokens or sys.maxsize, **options)
        self.in_one_pass = _InOnePass(self.loss, teacher, teacher_weight)
        self.uncached: nn.Module = self.in_one_pass

    def matryoshka(self, dims: Sequence[int]) -> MatryoshkaLoss:
        """Return this loss on the first numbers of each embedding as well, for batches of any size.

        ``MatryoshkaLoss(model, loss)`` alone would miss the batches within the budget.

        Args:
            dims: Embedding sizes, the model's own among them.

        References:
            - Matryoshka Representation Learning: https://arxiv.org/abs/2205.13147
        """
        self.uncached = MatryoshkaLoss(self.model, self.in_one_pass, dims)
        return MatryoshkaLoss(self.model, self, dims)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""
        columns = list(sentence_features)
        tokens = sum(int(column["attention_mask"].sum()) for column in columns)
        if tokens <= (self.mini_batch_num_tokens or 0):
            return self.uncached(columns, labels)
        return super().forward(columns, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of embeddings that were made in pieces, with their gradients taken if asked for."""
        if self.in_one_pass.teacher is None:
            return super().calculate_loss(reps, labels, with_backward=with_backward)
        # Taken at once: another process, whose batch is whole, gathers in the same order, forward and backward.
        loss = self.in_one_pass.of([torch.cat(column) for column in reps], labels)
        if with_backward:
            loss.backward()
        return loss.detach() if with_backward else loss


class _InOnePass(nn.Module):
    """Multiple negatives ranking whose columns are embedded together where that costs no padding.

    With adapters on a CPU every pass costs extra: each adapter is added to its weight (``lbr_st.model.merged``).
    """

    def __init__(self, loss: MultipleNegativesRankingLoss, teacher: Teacher | None, teacher_weight: float) -> None:
        super().__init__()
        self.loss, self.teacher, self.teacher_weight = loss, teacher, teacher_weight

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        model = self.loss.model
        backbone = next((one for one in unwrapped(model) if isinstance(one, CausalBackbone)), None)
        packs = backbone is not None and backbone.packs_on(columns[0]["attention_mask"].device)
        # Sentence Transformers keeps queries apart, so as not to pad them to their documents' length.
        embeddings = embed_columns(model, columns, separate_first=not packs)
        return self.of(embeddings, labels)

    def of(self, embeddings: list[Tensor], labels: Any) -> Tensor:
        """Return the loss of a batch's embeddings, one of shape (batch, dimension) for each column."""
        loss = self.loss.compute_loss_from_embeddings(embeddings, labels)
        if self.teacher is None:
            return loss
        scale, gather = self.loss.scale, self.loss.gather_across_devices
        told = self.teacher.divergence(embeddings, labels, scale=scale, gather=gather)
        return (1 - self.teacher_weight) * loss + self.teacher_weight * told
