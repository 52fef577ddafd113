"""Token rows of stage 1: ``c_1 … c_n  b_1 … b_k  t_1 … t_m <eos>``, with segments and labels.

Without a bottleneck k is 0: the target follows its context at once, and t_1 is predicted at c_n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lbr_st.attention import Segment
from lbr_st.errors import LBRError
from lbr_st.modules import CausalBackbone

IGNORE = -100


@dataclass(frozen=True)
class Rows:
    """A batch of token rows, padded on the right.

    Attributes:
        input_ids: Token ids, int64 of shape (batch, length).
        segments: :class:`~lbr_st.attention.Segment` of each position, int64 of the same shape.
        labels: The token to be predicted *from* each position, or -100; int64 of the same shape. Bottleneck tokens are
            never labels, so the last position of a context that a bottleneck follows and every bottleneck position
            but the last carry none.
    """

    input_ids: Tensor
    segments: Tensor
    labels: Tensor

    def labelled(self, segment: Segment) -> Tensor:
        """Return where a label of the context, or of the target, stands; booleans of shape (batch, length).

        What is predicted belongs to the segment it stands in, one further on: t_1 is of the target, at b_k as at c_n.
        """
        following = torch.nn.functional.pad(self.segments[:, 1:], (0, 1), value=int(Segment.PADDING))
        in_context = following == Segment.CONTEXT
        return (self.labels != IGNORE) & (in_context if segment == Segment.CONTEXT else ~in_context)


def texts_of(features: dict[str, Any]) -> list[Tensor]:
    """Return each row's real token ids (padding removed, on either side) from a tokenised column."""
    return [ids[mask.bool()] for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)]


def contexts_of(backbone: CausalBackbone, features: dict[str, Any]) -> list[Tensor]:
    """Return each context's ids, without the bottleneck tokens (or the one end-of-text token) that end it.

    Raises:
        LBRError: A row does not end with them (tokenised by another model), or a context is empty.
    """
    closing = torch.tensor(backbone.closing_ids, device=features["input_ids"].device)
    before, after = backbone.affixes
    contexts = []
    for row, ids in enumerate(texts_of(features)):
        if len(ids) < len(closing) or not torch.equal(ids[-len(closing) :], closing):
            raise LBRError(
                f"the context does not end with {_name_of_closing(backbone)}.",
                where=f"row {row} of the batch",
                fix="Tokenise it with this model's own preprocess (its tokenizer appends them).",
            )
        if len(ids) <= before + after:
            raise LBRError(
                "the context is empty.", where=f"row {row} of the batch", fix="Remove such pairs from the data."
            )
        contexts.append(ids[: -len(closing)])
    return contexts


def _name_of_closing(backbone: CausalBackbone) -> str:
    return "the bottleneck tokens" if backbone.bottleneck_ids else "the end-of-text token"


def targets_of(
    backbone: CausalBackbone,
    features: dict[str, Any],
    *,
    max_tokens: int | None = None,
    contexts: dict[str, Any] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return each target's own ids, and what is to be predicted: the ids and, if the text ends there, <eos>.

    Args:
        backbone: Tells what the tokenizer added, which is no part of a target.
        features: The tokenised column.
        max_tokens: Keep this many tokens; a target that was cut is not followed by <eos>, for it does not end there.
        contexts: The tokenised contexts, if targets may be empty. Where one is, its context is a whole text of its
            own: <eos>, predicted at the context's last token, is all that is left to predict, and not even that if
            the context was cut (a label of -100).

    Raises:
        LBRError: A target is empty, without ``contexts``.
    """
    before, after = backbone.affixes
    eos = torch.tensor([backbone.tokenizer.eos_token_id], device=features["input_ids"].device)
    inputs, labels = [], []
    ends = [not _was_cut(backbone, ids) for ids in texts_of(contexts)] if contexts is not None else []
    for row, ids in enumerate(texts_of(features)):
        text = ids[before : len(ids) - after]
        if not len(text):
            if contexts is None:
                raise LBRError(
                    "the target is empty.", where=f"row {row} of the batch", fix="Remove such pairs from the data."
                )
            inputs.append(text)
            labels.append(eos if ends[row] else torch.full_like(eos, IGNORE))
            continue
        cut = _was_cut(backbone, ids)
        if max_tokens is not None and len(text) > max_tokens:
            text, cut = text[:max_tokens], True
        # What is cut off predicts nothing further, so its last token is a label but not an input.
        inputs.append(text[:-1] if cut else text)
        labels.append(silence(backbone, text if cut else torch.cat([text, eos])))
    return inputs, labels


def _was_cut(backbone: CausalBackbone, ids: Tensor) -> bool:
    """Tell whether a text (its ids, special tokens included) filled the maximum length, as every longer text does."""
    limit = backbone.max_seq_length
    return limit is not None and len(ids) >= limit


def silence(backbone: CausalBackbone, labels: Tensor) -> Tensor:
    """Return labels without bottleneck tokens, which a text that spells one out would bring in."""
    spelt = torch.isin(labels, torch.tensor(backbone.bottleneck_ids, dtype=torch.long, device=labels.device))
    return labels.masked_fill(spelt, IGNORE)


def assemble(
    backbone: CausalBackbone,
    contexts: Sequence[Tensor],
    targets: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    bottleneck: bool = True,
) -> Rows:
    """Join contexts, bottleneck and targets to rows.

    Args:
        backbone: Gives the bottleneck's ids.
        contexts: Each context's ids, without the bottleneck.
        targets: Each target's input ids; the first label is predicted at b_k (at c_n without a bottleneck), the next
            at ``targets[0]``, and so on.
        labels: For each target one label more than it has inputs.
        bottleneck: Put the bottleneck tokens between them; without, the rows are plain text.
    """
    device = contexts[0].device
    between = torch.tensor(backbone.bottleneck_ids if bottleneck else [], dtype=torch.long, device=device)
    k = len(between)
    all_ids, all_segments, all_labels = [], [], []
    for context, target, label in zip(contexts, targets, labels, strict=True):
        n, m = len(context), len(target)
        all_ids.append(torch.cat([context, between, target]))
        sizes = torch.tensor([n, k, m], device=device)
        kinds = torch.tensor([Segment.CONTEXT, Segment.BOTTLENECK, Segment.TARGET], device=device)
        all_segments.append(kinds.repeat_interleave(sizes))
        silent = torch.full((k,), IGNORE, device=device)
        all_labels.append(torch.cat([silence(backbone, context[1:]), silent, label]))
    return Rows(
        input_ids=pad_sequence(all_ids, batch_first=True, padding_value=backbone.tokenizer.pad_token_id),
        segments=pad_sequence(all_segments, batch_first=True, padding_value=int(Segment.PADDING)),
        labels=pad_sequence(all_labels, batch_first=True, padding_value=IGNORE),
    )
