"""The mean over the tokens of an optimiser step, whatever number of batches and processes it is cut into.

A trainer takes the mean of the losses of accumulated batches, and of several processes. Each batch's loss being a mean
over its own tokens, a token of a batch with few of them would weigh more. Here the tokens are counted before the step
begins, and each batch divides its sums by their mean number in a batch: the mean of these is the mean over all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformerTrainer
from torch import nn

from lbr_st.losses import IBGenerativeLoss
from lbr_st.processes import world_size

TERMS = ("target", "context", "rate")


class TokenWeightedTrainer(SentenceTransformerTrainer):
    """A :class:`~sentence_transformers.SentenceTransformerTrainer` whose generative losses are means over all tokens.

    That is, over those of all accumulated batches of all processes. With several datasets, the batches of one are
    averaged among themselves; each keeps its share of the step. Logged terms stay means per token.
    """

    _mean_counts: dict[str, dict[str, float]] | None = None
    """Of the step at hand, by dataset (or ``""``): each term's mean count in a batch."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of an optimiser step, and count what is in them."""
        fetched = super().get_batch_samples(*args, **kwargs)
        batches: list[dict[str, Any]] = fetched[0]
        # A batch of its own is counted by the loss.
        self._mean_counts = self._count(batches) if len(batches) * world_size() > 1 else None
        return fetched

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as Sentence Transformers does; in training, with the counts of the whole step."""
        name = inputs.get("dataset_name") or ""
        counts = (self._mean_counts or {}).get(name)
        loss = _generative(self.loss[name] if isinstance(self.loss, dict) else self.loss) if counts else None
        if loss is None or not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        loss.shared_counts = counts
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            loss.shared_counts = None

    def _count(self, batches: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        losses = self.loss if isinstance(self.loss, dict) else {"": self.loss}
        counting = {name: found for name, loss in losses.items() if (found := _generative(loss)) is not None}
        if not counting:
            return {}
        names = list(counting)
        # A row for each dataset: how many batches, and each term's count in them.
        totals = torch.zeros(len(names), 1 + len(TERMS), dtype=torch.float64)
        for batch in batches:
            name = batch.get("dataset_name") or ""
            if name in counting:
                features, _ = self.collect_features(dict(batch))
                counts = counting[name].counts(features)
                row = [1.0, *(counts[term] for term in TERMS)]
                totals[names.index(name)] += torch.tensor(row, dtype=torch.float64)
        if world_size() > 1:
            totals = totals.to(self.args.device)
            dist.all_reduce(totals)
        return {
            name: {term: number / batches for term, number in zip(TERMS, numbers, strict=True)}
            for name, (batches, *numbers) in zip(names, totals.tolist(), strict=True)
            if batches
        }


def _generative(loss: nn.Module) -> IBGenerativeLoss | None:
    """Return the generative loss that this one is or holds."""
    return next((module for module in loss.modules() if isinstance(module, IBGenerativeLoss)), None)
