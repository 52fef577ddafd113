"""Token rows of stage 1: ``c_1 … c_n  b_1 … b_k  t_1 … t_m <eos>``, with segments and labels.

Rows are packed (all examples of a batch in a single row, without padding) or padded (a row each). They are made with a
few operations on whole columns, since a GPU would wait for a loop over examples. Without a bottleneck k is 0: t_1 is
predicted at c_n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from lbr_st.errors import LBRError
from lbr_st.model.backbone import CausalBackbone
from lbr_st.model.mask import Segment

IGNORE = -100


@dataclass(frozen=True)
class Rows:
    """A batch of examples as token rows: packed, shape (1, tokens), or padded on the right, shape (examples, longest).

    Attributes:
        input_ids: Token ids, int64.
        segments: :class:`~lbr_st.model.mask.Segment` of each position.
        examples: Number of the example that a position belongs to, from 0; of padding, that of the position before.
        labels: The token to predict *from* each position, or -100. Bottleneck tokens are never labels, so neither the
            last context position before a bottleneck nor any bottleneck position but the last has one.
        predicts: The segment of the label, one position further on: t_1 belongs to the target. ``Segment.PADDING``
            where there is no label.
        last: Whether a position is the last one of its example.
        packed: Whether all examples share one row.
    """

    input_ids: Tensor
    segments: Tensor
    examples: Tensor
    labels: Tensor
    predicts: Tensor
    last: Tensor
    packed: bool = field(kw_only=True)


@dataclass(frozen=True)
class Targets:
    """Each example's target with what follows it, as tokens to predict: the last one is a label but no input.

    Attributes:
        tokens: Ids, int64 of shape (examples, longest).
        keep: Which of them count, booleans of the same shape.
    """

    tokens: Tensor
    keep: Tensor


def _closing_of(backbone: CausalBackbone, features: dict[str, Any]) -> Tensor:
    """Return where the tokens that end each context stand; refuse a context of another model's tokenizer, or empty."""
    ids, mask = features["input_ids"], features["attention_mask"].bool()
    closing = torch.tensor(backbone.closing_ids, device=ids.device)
    lengths = mask.sum(dim=1)
    to_the_end = mask.flip(1).cumsum(1).flip(1)  # real positions from each one to the end of its row
    ends = mask & (to_the_end <= len(closing))
    complete = lengths >= len(closing)
    right = torch.zeros_like(complete)
    if complete.any():
        right[complete] = (ids[complete][ends[complete]].view(-1, len(closing)) == closing).all(dim=1)
    before, after = backbone.affixes
    empty = lengths <= before + after
    name = "bottleneck tokens" if backbone.bottleneck_ids else "end-of-text token"
    foreign = f"the context does not end with the {name}."
    for wrong, what, fix in (
        (~right, foreign, "Tokenise it with this model's own preprocess (its tokenizer appends them)."),
        (empty, "the context is empty.", "Remove such pairs from the data."),
    ):
        if wrong.any():
            raise LBRError(what, where=f"row {int(wrong.nonzero()[0])} of the batch", fix=fix)
    return ends


def targets_of(
    backbone: CausalBackbone,
    features: dict[str, Any],
    *,
    max_tokens: int | None = None,
    contexts: dict[str, Any] | None = None,
) -> Targets:
    """Return each target's own tokens, and <eos> after those texts that end there.

    Args:
        backbone: Tells what the tokenizer added, which does not belong to a target.
        features: The tokenised column.
        max_tokens: Keep this many tokens. No <eos> follows a target that was cut.
        contexts: The tokenised contexts, if targets may be empty. An empty target's context is a whole text: only <eos>
            is left to predict, at the context's last token, and nothing if the context was cut.

    Raises:
        LBRError: A target is empty, without ``contexts``.
    """
    ids, mask = features["input_ids"], features["attention_mask"].bool()
    before, after = backbone.affixes
    place = mask.cumsum(1) - 1  # of a real token, counted from its text's first
    lengths = mask.sum(dim=1)
    sizes = (lengths - before - after).clamp(min=0)
    cut = _was_cut(backbone, lengths)
    if contexts is None:
        if not sizes.all():
            row = int((sizes == 0).nonzero()[0])
            raise LBRError("the target is empty.", where=f"row {row} of the batch", fix="Remove such pairs.")
    else:
        cut = torch.where(sizes > 0, cut, _was_cut(backbone, contexts["attention_mask"].sum(dim=1)))
    if max_tokens is not None:
        cut = cut | (sizes > max_tokens)
        sizes = sizes.clamp(max=max_tokens)
    keep = mask & (place >= before) & (place < before + sizes[:, None])
    # One more column, for <eos>. It stands apart from the text; assemble leaves out what is not kept between.
    eos = torch.full_like(ids[:, :1], backbone.tokenizer.eos_token_id)
    return Targets(torch.cat([ids, eos], dim=1), torch.cat([keep, ~cut[:, None]], dim=1))


def _was_cut(backbone: CausalBackbone, lengths: Tensor) -> Tensor:
    """Tell whether texts of that many ids (special tokens included) fill the maximum length, as longer ones do."""
    limit = backbone.max_seq_length
    return torch.zeros_like(lengths, dtype=torch.bool) if limit is None else lengths >= limit


def assemble(
    backbone: CausalBackbone,
    contexts: dict[str, Any] | int,
    targets: Targets | None,
    *,
    bottleneck: bool = True,
    packed: bool = True,
) -> Rows:
    """Join contexts, bottlenecks and targets to rows.

    Args:
        backbone: Gives the bottleneck's ids.
        contexts: The tokenised contexts, each ending with the tokens that the tokenizer appends; or the number of soft
            prompt vectors that replace them, whose places are marked as bottleneck.
        targets: What follows; None for the contexts alone, whose last bottleneck token is then an input as well.
        bottleneck: Put the bottleneck tokens between them; without, the rows are plain text.
        packed: Make one row of all; otherwise a padded row each.
    """
    ids, segments = _before_targets(backbone, contexts, targets, bottleneck=bottleneck)
    if targets is not None:
        ids = torch.cat([ids, targets.tokens], dim=1)
        segments = torch.cat([segments, targets.keep * int(Segment.TARGET)], dim=1)
    real = segments != Segment.PADDING
    owner = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    ids, segments, owner = ids[real], segments[real], owner[real]

    follows = owner[1:] == owner[:-1]  # by a position of the same example
    labels = pad(torch.where(follows, ids[1:], IGNORE), (0, 1), value=IGNORE)
    silent = torch.tensor(backbone.bottleneck_ids, dtype=torch.long, device=ids.device)
    labels = labels.masked_fill(torch.isin(labels, silent), IGNORE)
    predicts = pad(segments[1:], (0, 1)).masked_fill(labels == IGNORE, int(Segment.PADDING))
    is_input = pad(follows, (0, 1), value=False)
    if targets is None:
        is_input = torch.ones_like(is_input)
    else:  # an example of one token predicts nothing, but stays so that the others keep their numbers
        is_input |= ~is_input & ~pad(follows, (1, 0), value=False)
    ids, segments, owner, labels, predicts = (one[is_input] for one in (ids, segments, owner, labels, predicts))
    last = pad(owner[1:] != owner[:-1], (0, 1), value=True)
    columns = (ids, segments, owner, labels, predicts, last)
    if packed:
        return Rows(*_to_one_row(backbone, columns), packed=True)
    sizes = torch.bincount(owner).tolist()
    fill = (backbone.tokenizer.pad_token_id, int(Segment.PADDING), 0, IGNORE, int(Segment.PADDING), False)
    padded = [
        pad_sequence(column.split(sizes), batch_first=True, padding_value=value)
        for column, value in zip(columns, fill, strict=True)
    ]
    return Rows(*padded, packed=False)


def _before_targets(
    backbone: CausalBackbone, contexts: dict[str, Any] | int, targets: Targets | None, *, bottleneck: bool
) -> tuple[Tensor, Tensor]:
    """Return the ids and segments of what stands before the targets, with holes."""
    if isinstance(contexts, int):
        assert targets is not None
        places = targets.tokens.new_full((len(targets.tokens), contexts), backbone.bottleneck_ids[0])
        return places, torch.full_like(places, int(Segment.BOTTLENECK))
    closing = _closing_of(backbone, contexts)
    ids, mask = contexts["input_ids"], contexts["attention_mask"].bool()
    at_the_end = Segment.BOTTLENECK if bottleneck else Segment.PADDING
    return ids, (mask & ~closing) * int(Segment.CONTEXT) + closing * int(at_the_end)


def _to_one_row(backbone: CausalBackbone, columns: tuple[Tensor, ...]) -> list[Tensor]:
    """Return columns of shape (1, length).

    A long row is filled up, on a GPU by 3% at most, so that compiled kernels and freed memory serve again. On a CPU odd
    lengths are slower besides (measured).
    """
    ids, _, owner, *_ = columns
    step = max(128, 1 << max(0, len(ids).bit_length() - 6)) if ids.is_cuda or len(ids) > 512 else 1
    missing = -len(ids) % step
    padding = int(Segment.PADDING)
    fill = (backbone.tokenizer.pad_token_id, padding, int(owner[-1]) if missing else 0, IGNORE, padding, 0)
    return [pad(column, (0, missing), value=value)[None] for column, value in zip(columns, fill, strict=True)]
