"""BottleneckPooler: the state of the last token, the last of the bottleneck, becomes the embedding."""

from __future__ import annotations

from typing import Any, Self

import torch
from safetensors.torch import load_model as load_safetensors_model
from sentence_transformers.sentence_transformer.modules import Module, Pooling
from torch import Tensor, nn

from lbr_st.model.safe import pickled


class BottleneckPooler(Module):
    """Pool the last bottleneck token, optionally project it, and add variational noise while training.

    Without a bottleneck the last token of every encoding is the end-of-text token. In a release the pooler becomes
    stock ``Pooling("lasttoken")`` and, with a projection, a stock ``Dense``; noise and bridge exist in training only.

    Args:
        hidden_dimension: Size of the backbone's hidden states.
        projection_dimension: Size of the embedding if it is to differ; None keeps the hidden state as it is.
        variational: Make the embedding z ~ N(μ, σ²) while training, with σ predicted from the hidden state, and add
            ``rate``: KL(N(μ, σ²) ‖ N(0, I)) in nats, shape (batch,). In evaluation z = μ.
        num_soft_tokens: How many soft prompt vectors the bridge of the "embedding" bottleneck gives; 0 for no bridge.
    """

    config_keys: list[str] = ["hidden_dimension", "projection_dimension", "variational", "num_soft_tokens"]

    def __init__(
        self,
        hidden_dimension: int,
        projection_dimension: int | None = None,
        variational: bool = False,
        num_soft_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.hidden_dimension = hidden_dimension
        self.projection_dimension = projection_dimension
        self.pooling = Pooling(hidden_dimension, "lasttoken")
        self.projection = nn.Linear(hidden_dimension, projection_dimension) if projection_dimension else None
        self.log_variance: nn.Linear | None = None
        self.bridge: nn.Linear | None = None
        if variational:
            self.add_noise()
        if num_soft_tokens:
            self.add_bridge(num_soft_tokens)

    @property
    def variational(self) -> bool:
        """Whether the embedding is a sample of a Gaussian while training."""
        return self.log_variance is not None

    @property
    def num_soft_tokens(self) -> int:
        """How many soft prompt vectors the bridge gives; 0 without a bridge."""
        return self.bridge.out_features // self.hidden_dimension if self.bridge is not None else 0

    def add_noise(self) -> None:
        """Make the pooler variational. It starts almost noiseless, so that training begins where it stood."""
        self.log_variance = nn.Linear(self.hidden_dimension, self.get_embedding_dimension())
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, -4.0)

    def add_bridge(self, num_soft_tokens: int, scale: float = 1.0) -> None:
        """Add the linear bridge from an embedding to soft prompt vectors.

        Args:
            num_soft_tokens: How many vectors.
            scale: Their root mean square for a unit-length embedding: that of the backbone's token embeddings, so that
                the decoder first meets something of the size it is used to.
        """
        self.bridge = nn.Linear(self.get_embedding_dimension(), num_soft_tokens * self.hidden_dimension)
        nn.init.normal_(self.bridge.weight, std=scale)
        nn.init.zeros_(self.bridge.bias)

    def soft_prompt(self, embedding: Tensor) -> Tensor:
        """Map embeddings of shape (batch, dimension) to soft prompts of shape (batch, num_soft_tokens, hidden)."""
        assert self.bridge is not None, "call add_bridge first"
        return self.bridge(embedding).unflatten(-1, (-1, self.hidden_dimension))

    def forward(self, features: dict[str, Tensor | Any], **kwargs: Any) -> dict[str, Tensor | Any]:
        """Add ``sentence_embedding`` of shape (batch, dimension), and ``rate`` of shape (batch,) if variational."""
        pooled = self.pooling(features)["sentence_embedding"]
        mean = self.projection(pooled) if self.projection is not None else pooled
        if self.log_variance is not None and self.training:
            log_variance = self.log_variance(pooled)
            variance = log_variance.exp()
            features["rate"] = 0.5 * (mean.square() + variance - log_variance - 1).float().sum(dim=-1)
            mean = mean + variance.sqrt() * torch.randn_like(mean)
        features["sentence_embedding"] = mean
        return features

    def get_embedding_dimension(self) -> int:
        """Return the size of the embedding."""
        return self.projection_dimension or self.hidden_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the configuration and, if there are any, the weights."""
        self.save_config(output_path)
        if self.state_dict():
            self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> Self:
        """Load a saved pooler; raise :class:`LBRError` if its ``model.safetensors`` is missing."""
        hub = {key: kwargs[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in kwargs}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        pooler = cls(**{key: value for key, value in config.items() if key in cls.config_keys})
        if pooler.state_dict():
            # load_torch_weights would unpickle a pytorch_model.bin.
            file = cls.load_file_path(model_name_or_path, "model.safetensors", subfolder=subfolder, **hub)
            if file is None:
                raise pickled(f"{model_name_or_path}/{subfolder}")
            load_safetensors_model(pooler, file)
        return pooler
