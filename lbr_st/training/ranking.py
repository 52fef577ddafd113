"""TokenBudgetRankingLoss: multiple negatives ranking whose memory is bounded by tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

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
        **options: Options of :class:`~sentence_transformers.losses.CachedMultipleNegativesRankingLoss`, such as
            ``gather_across_devices``: also take the other processes' documents as negatives, with gradients.

    References:
        - Efficient Natural Language Response Suggestion for Smart Reply, section 4.4: https://arxiv.org/abs/1705.00652
        - Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup: https://arxiv.org/abs/2101.06983

    Inputs:
        (anchor, positive) pairs, or (anchor, positive, negative_1, ..., negative_n); no labels.

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
        **options: Any,
    ) -> None:
        super().__init__(model, scale=scale, mini_batch_num_tokens=mini_batch_num_tokens or sys.maxsize, **options)
        self.uncached: nn.Module = _InOnePass(self.loss)

    def matryoshka(self, dims: Sequence[int]) -> MatryoshkaLoss:
        """Return this loss on the first numbers of each embedding as well, for batches of any size.

        ``MatryoshkaLoss(model, loss)`` alone would miss the batches within the budget.

        Args:
            dims: Embedding sizes, the model's own among them.

        References:
            - Matryoshka Representation Learning: https://arxiv.org/abs/2205.13147
        """
        self.uncached = MatryoshkaLoss(self.model, _InOnePass(self.loss), dims)
        return MatryoshkaLoss(self.model, self, dims)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""
        columns = list(sentence_features)
        tokens = sum(int(column["attention_mask"].sum()) for column in columns)
        if tokens <= (self.mini_batch_num_tokens or 0):
            return self.uncached(columns, labels)
        return super().forward(columns, labels)


class _InOnePass(nn.Module):
    """Multiple negatives ranking whose columns are embedded together where that costs no padding.

    With adapters on a CPU every pass costs extra: each adapter is added to its weight (``lbr_st.model.merged``).
    """

    def __init__(self, loss: MultipleNegativesRankingLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, columns: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        model = self.loss.model
        backbone = next((one for one in unwrapped(model) if isinstance(one, CausalBackbone)), None)
        packs = backbone is not None and backbone.packs_on(columns[0]["attention_mask"].device)
        # Sentence Transformers keeps queries apart, so as not to pad them to their documents' length.
        embeddings = embed_columns(model, columns, separate_first=not packs)
        return self.loss.compute_loss_from_embeddings(embeddings, labels)
