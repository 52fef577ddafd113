"""BottleneckGainEvaluator: is the bottleneck used at all?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.util import batch_to_device

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.errors import LBRError


class BottleneckGainEvaluator(SentenceEvaluator):
    """Measure how much of a target a model generates from its own context's bottleneck.

    The bottleneck gain is the target's negative log-likelihood given *another* example's context, minus that given
    its own, in nats per target token. At zero the decoder ignores the bottleneck (posterior collapse): stage 1 then
    teaches language modelling and no compression, which negative log-likelihoods alone do not show. With
    ``bottleneck="none"`` it says how much a context in plain sight helps.

    Args:
        contexts: Held-out contexts, prompts included; at least two different ones.
        targets: Their targets, in the same order.
        loss: The loss in training, for its bottleneck and target length.
        batch_size: How many pairs go through the model at once.
        name: Prefix of the metrics.

    Raises:
        LBRError: Fewer than two pairs, or lists of different lengths.
    """

    def __init__(
        self,
        contexts: Sequence[str],
        targets: Sequence[str],
        loss: IBGenerativeLoss,
        batch_size: int = 16,
        name: str = "",
    ) -> None:
        super().__init__()
        if len(contexts) != len(targets) or len(contexts) < 2:
            found = f"{len(contexts)} contexts and {len(targets)} targets"
            what = f"the bottleneck gain needs at least two pairs; there are {found}."
            raise LBRError(what, fix="Hold out more pairs, or do without this evaluator.")
        self.contexts, self.targets = list(contexts), list(targets)
        self.loss, self.batch_size, self.name = loss, batch_size, name
        self.primary_metric = "bottleneck_gain"

    def __call__(  # type: ignore[override]
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return ``target_nll``, ``target_nll_other_context`` and ``bottleneck_gain``, in nats per target token."""
        training = self.loss.training
        self.loss.eval()
        try:
            own = self._nll(model, self.contexts)
            # Each target meets its neighbour's context; a shift by one leaves none with its own.
            other = self._nll(model, self.contexts[1:] + self.contexts[:1])
        finally:
            self.loss.train(training)
        metrics = {"target_nll": own, "target_nll_other_context": other, "bottleneck_gain": other - own}
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, int(epoch), steps)
        return metrics

    @torch.no_grad()
    def _nll(self, model: SentenceTransformer, contexts: list[str]) -> float:
        total, count = 0.0, 0
        for start in range(0, len(contexts), self.batch_size):
            batch = slice(start, start + self.batch_size)
            texts = (contexts[batch], self.targets[batch])
            columns = [batch_to_device(model.preprocess(column), model.device) for column in texts]
            nll = self.loss.target_nll(columns)
            total, count = total + nll.sum().item(), count + len(nll)
        return total / count
