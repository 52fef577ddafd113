"""The bag-of-words term of stage 1: an embedding's state names the target's tokens, in no order and with no prefix."""

from __future__ import annotations

from torch import Tensor

from lbr_st.attention import Segment
from lbr_st.bottleneck import Prediction
from lbr_st.token_nll import Head


def bag_nll_sum(source: Prediction, target: Prediction, head: Head) -> Tensor:
    """Return the sum of the negative log-likelihoods of the target's tokens, each from the bottleneck's state alone.

    A decoder that sees the target's beginning can do without the bottleneck; this term cannot.

    Args:
        source: The pass in which the bottleneck tokens were run.
        target: What is predicted; the same pass, or with the embedding bottleneck the second one.
        head: Projects the states. The logits of all examples are held at once, examples times vocabulary.

    Returns:
        A scalar in nats, float32.

    References:
        - Making Large Language Models A Better Foundation For Dense Retrieval (LLaRA): https://arxiv.org/abs/2312.15503
    """
    rows = target.rows
    predicted = rows.predicts == Segment.TARGET
    likelihoods = head.logits(source.closing()).float().log_softmax(dim=-1)
    return -likelihoods[rows.examples[predicted], rows.labels[predicted]].sum()
