"""Gradient checkpointing: activations that are computed again in the backward pass, to save memory."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformerTrainer

from lbr_st.bottleneck import backbone_of

ENABLE = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
"""What a trainer calls, under its new name and its old one."""


class RecomputingTrainer(SentenceTransformerTrainer):
    """A :class:`~sentence_transformers.SentenceTransformerTrainer` whose ``gradient_checkpointing`` is the decoder's.

    transformers hands options over that Sentence Transformers' own method does not take (6.0), or takes under a name
    that is to go (6.2). Here the trainer finds the decoder's methods; when it is done, the model is as it was.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as Sentence Transformers does."""
        model: Any = self.model
        decoder: Any = backbone_of(model).model
        methods = {name: getattr(decoder, name) for name in ENABLE if hasattr(decoder, name)}
        model.__dict__.update(methods)
        try:
            return super().train(*args, **kwargs)
        finally:
            for name in methods:
                del model.__dict__[name]
            if self.args.gradient_checkpointing:
                disable = getattr(decoder, "activation_checkpointing_disable", decoder.gradient_checkpointing_disable)
                disable()
