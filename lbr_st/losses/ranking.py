"""TokenBudgetRankingLoss: multiple negatives ranking whose memory is bounded by tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sentence_transformers
from packaging.version import Version
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from lbr_st.errors import LBRError
from lbr_st.modules import CausalBackbone
from lbr_st.processes import world_size
from lbr_st.wrapped import unwrapped

REDUCES_ONCE = Version("6.2")
"""From this version of Sentence Transformers on, several processes reduce their gradients after the last piece of a
batch; before, after each piece, which pieces by tokens are not as many of in every process."""


class TokenBudgetRankingLoss(CachedMultipleNegativesRankingLoss):
    """Sentence Transformers' multiple negatives ranking loss, cached only where a batch is too large to be run whole.

    The loss and its gradients are those of
    :class:`~sentence_transformers.losses.MultipleNegativesRankingLoss` in any case. A batch of up to
    ``mini_batch_num_tokens`` tokens, all columns together, goes through it as it is. A larger one goes through
    :class:`~sentence_transformers.losses.CachedMultipleNegativesRankingLoss` (GradCache), in pieces of up to that many
    tokens: it is embedded twice then, and the activations of one piece at a time are all that is held.

    Args:
        model: The model in training.
        scale: Multiplies the similarities; one divided by the temperature.
        mini_batch_num_tokens: Most tokens, padding not counted, whose activations are held at once.
        gather_across_devices: Take the other processes' documents as negatives, too, with gradients.
        **options: Others of :class:`~sentence_transformers.losses.CachedMultipleNegativesRankingLoss`.

    References:
        - Efficient Natural Language Response Suggestion for Smart Reply, section 4.4: https://arxiv.org/abs/1705.00652
        - Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup: https://arxiv.org/abs/2101.06983

    Requirements:
        1. (anchor, positive) pairs, or these with negatives.
        2. For several processes, Sentence Transformers 6.2.

    Inputs:
        +-------------------------------------------------+--------+
        | Inputs                                          | Labels |
        +=================================================+========+
        | (anchor, positive) pairs                        | none   |
        +-------------------------------------------------+--------+
        | (anchor, positive, negative_1, ..., negative_n) | none   |
        +-------------------------------------------------+--------+

    Raises:
        LBRError: Several processes train under an older Sentence Transformers.

    Example:
        ::

            loss = TokenBudgetRankingLoss(model, mini_batch_num_tokens=4096)
            trainer = SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss)
            trainer.train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        *,
        mini_batch_num_tokens: int = 4096,
        gather_across_devices: bool = False,
        **options: Any,
    ) -> None:
        installed = sentence_transformers.__version__
        if world_size() > 1 and Version(installed) < REDUCES_ONCE:
            raise LBRError(
                f"sentence-transformers {installed} reduces gradients after each piece of a batch, and pieces by "
                "tokens are not as many in every process.",
                where="mini_batch_tokens",
                fix=f"Update to sentence-transformers {REDUCES_ONCE}, or set mini_batch_size instead.",
            )
        super().__init__(
            model,
            scale=scale,
            mini_batch_num_tokens=mini_batch_num_tokens,
            gather_across_devices=gather_across_devices,
            **options,
        )
        self.uncached: nn.Module = _InOnePass(self.loss)
        """What a batch within the budget goes through; :meth:`matryoshka` puts its own in the place."""

    def matryoshka(self, dims: Sequence[int]) -> MatryoshkaLoss:
        """Return this loss on the first numbers of each embedding as well, in both ways of running a batch.

        ``MatryoshkaLoss(model, loss)`` alone reaches no batch within the budget: of a caching loss it decorates what
        computes the cached one.

        Args:
            dims: Embedding sizes, that of the model among them.

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

    With adapters on a CPU every pass has a price of its own: each is added to its weight (``lbr_st.merged_lora``).
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
