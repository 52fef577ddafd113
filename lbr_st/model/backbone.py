"""CausalBackbone: the first module of a training model, a causal LM that keeps its head."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING as ENCODERS
from transformers.utils import ADAPTER_CONFIG_NAME

from lbr_st.errors import LBRError
from lbr_st.model.bases import resolve_base
from lbr_st.model.embedder import embedder_prompts
from lbr_st.model.lora import has_lora, load_lora, read_lora_config, save_lora, trained_rows
from lbr_st.model.mask import Segment, attention_mask
from lbr_st.model.nll import Head
from lbr_st.model.packed_attention import IMPLEMENTATION
from lbr_st.model.safe import explain_load_errors, without_code
from lbr_st.model.tokens import affixes, bottleneck_token_ids, closing_ids, read_as_text, with_bottleneck_tokens

_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


class CausalBackbone(Transformer):
    """A causal language model as a Sentence Transformers input module, its attention causal and its head kept.

    Unlike :class:`~sentence_transformers.models.Transformer` it loads ``AutoModelForCausalLM``, so that stage 1 can
    predict tokens, and it runs under the bottleneck mask where a loss asks for it. ``forward`` gives the token
    embeddings of the stock module, so that a release can be in stock form. It has no code for single architectures.

    Build one with :func:`lbr_st.build_model`, which adds the bottleneck tokens.

    Nothing in a folder runs: ``trust_remote_code`` is off for the configuration, the weights and the tokenizer, and for
    an adapter's base. Weights come from safetensors.

    Args:
        model_name_or_path: A folder or hub id whose tokenizer carries bottleneck tokens, or will once
            :meth:`use_bottleneck_tokens` has been called.
        base: What the model was built from, as the user named it; kept for the record.
        adapter_base: Where a saved adapter's base is; None for where its ``adapter_config.json`` says.
        **kwargs: Passed to :class:`~sentence_transformers.models.Transformer`.

    Raises:
        LBRError: The checkpoint is not a causal LM, or ``trust_remote_code`` is given.
    """

    config_keys: list[str] = [*Transformer.config_keys, "base", "replaced_ids"]

    def __init__(
        self, model_name_or_path: str, *, base: str | None = None, adapter_base: str | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("modality_config", _TEXT_ONLY)
        kwargs.setdefault("module_output_name", "token_embeddings")
        for options in ("model_kwargs", "config_kwargs", "processor_kwargs"):
            kwargs[options] = without_code(kwargs.get(options))
        self._adapter_base = adapter_base
        replaced_ids: list[int] | None = kwargs.pop("replaced_ids", None)
        super().__init__(model_name_or_path, **kwargs)
        read_as_text(self.tokenizer)  # models of older versions were saved without this option
        self.base = base or model_name_or_path
        self.replaced_ids = replaced_ids  # set by use_bottleneck_tokens, saved with the model
        # Where the base also pads with its end-of-text token (SmolLM2, among many), transformers drops the gradient of
        # that row. Padding is masked out anyway, and without a bottleneck this token's state is the embedding.
        table = self.model.get_input_embeddings()
        table = getattr(table, "original_module", table)  # under LoRA, peft's wrapper asks the table it wraps
        if getattr(table, "padding_idx", None) == self.tokenizer.eos_token_id:
            table.padding_idx = None
        if hasattr(config := self.model.config.get_text_config(), "use_cache"):
            # Set here, not in a trainer: a model in hand and its copy on disk give the same release, byte for byte.
            config.use_cache = False
        if self.model.config._attn_implementation == "sdpa":
            # Our sdpa also runs packed rows. No file on disk names it.
            self.model.set_attn_implementation(IMPLEMENTATION)

    def _load_config(self, model_name_or_path: str, backend: str, config_kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """Read the configuration, for a saved adapter that of its base, which may be an embedded one."""
        is_adapter = (Path(model_name_or_path) / ADAPTER_CONFIG_NAME).is_file()
        if is_adapter:
            base = self._base_of(model_name_or_path)
            with explain_load_errors(base, "the base"):
                config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        else:
            config, is_adapter = super()._load_config(model_name_or_path, backend, config_kwargs)
        if "/" in (getattr(config, "_attn_implementation", None) or ""):
            what = f"config.json asks for code from the hub ({config._attn_implementation}), which is never run."
            raise LBRError(what, where=model_name_or_path, fix="Remove attn_implementation from it.")
        return config, is_adapter

    def _base_of(self, adapter: str) -> str:
        """Return the folder or hub id of a saved adapter's base."""
        return resolve_base(self._adapter_base or str(read_lora_config(adapter).base_model_name_or_path))

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: Any,
        backend: str,
        is_peft_model: bool,
        **kwargs: Any,
    ) -> PreTrainedModel:
        """Load the causal LM, and for a saved adapter its base first, with room for the bottleneck tokens."""
        if not is_peft_model:
            return load_causal_lm(model_name_or_path, config=config, **kwargs)
        adapter = read_lora_config(model_name_or_path)
        for of_adapter in ("subfolder", "revision"):
            kwargs.pop(of_adapter, None)
        # In float32, as build_model loads it: adapters take the type of their base.
        options = {"dtype": torch.float32, **kwargs}
        model = load_causal_lm(self._base_of(model_name_or_path), config=config, **options)
        trained = cast(dict[str, list[int]], adapter.trainable_token_indices or {})
        make_room(model, max((row for ids in trained.values() for row in ids), default=-1) + 1)
        load_lora(model, model_name_or_path)
        return model

    def use_bottleneck_tokens(self, num_tokens: int, *, replace: bool = False) -> list[int]:
        """Give the tokenizer ``num_tokens`` bottleneck tokens and the vocabulary rows for them; return their ids.

        The caller sets the rows' values. With 0 the tokenizer appends the end-of-text token, which has a row. With
        ``replace`` an embedder's closing tokens go, and ``replaced_ids`` names the one that each bottleneck token is to
        be a copy of; the last of the last. Raises as :func:`~lbr_st.model.tokens.with_bottleneck_tokens`.
        """
        plain = self.tokenizer
        self.processor = with_bottleneck_tokens(plain, num_tokens, replace=replace)
        if replace:
            closing = closing_ids(plain)
            last = [-(-place * len(closing) // num_tokens) - 1 for place in range(1, num_tokens + 1)]
            self.replaced_ids = [closing[index] for index in last]
        self.input_formatter.processor = self.processor
        for kept in ("affixes", "bottleneck_ids"):
            self.__dict__.pop(kept, None)
        make_room(self.model, max(self.closing_ids) + 1)
        return self.bottleneck_ids

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:  # type: ignore[override]
        """The tokenizer; it appends the bottleneck tokens, or without a bottleneck the end-of-text token."""
        return cast(PreTrainedTokenizerFast, self.processor)

    @cached_property  # a fast tokenizer copies its whole vocabulary each time it is asked
    def bottleneck_ids(self) -> list[int]:
        """Vocabulary ids of the bottleneck tokens, in order; k of them, none without a bottleneck."""
        return bottleneck_token_ids(self.tokenizer)

    @property
    def closing_ids(self) -> list[int]:
        """Ids that end every encoding: the bottleneck tokens, or without a bottleneck the end-of-text token."""
        return self.bottleneck_ids or [cast(int, self.tokenizer.eos_token_id)]

    @cached_property
    def affixes(self) -> tuple[int, int]:
        """How many tokens the tokenizer adds before and after a text, :attr:`closing_ids` included."""
        return affixes(self.tokenizer)

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its language-modelling head."""
        return self.model.base_model

    def embed(self, input_ids: Tensor) -> Tensor:
        """Look tokens up as the decoder does: ids of shape (…) to vectors of shape (…, hidden).

        Under LoRA the trained rows replace their tokens' vectors. peft's own layer would copy the whole vocabulary, and
        its gradient, in each pass.
        """
        table = self.model.get_input_embeddings()
        if not (trained := trained_rows(table)):
            return table(input_ids)
        plain, ids, rows = trained
        vectors = plain(input_ids)
        scale = getattr(plain, "embed_scale", None)  # Gemma multiplies what it looks up
        if scale is not None:
            rows = rows * scale.to(rows.dtype)
        which = input_ids[..., None] == torch.tensor(ids, device=input_ids.device)
        own = torch.nn.functional.embedding(which.int().argmax(-1), rows)
        return torch.where(which.any(-1, keepdim=True), own.to(vectors.dtype), vectors)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read what :meth:`save_config` wrote and nothing else, so that no file decides how transformers loads."""
        config = super().load_config(*args, **kwargs)
        return {key: value for key, value in config.items() if key in cls.config_keys}

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, *, adapter_base: str | None = None, **kwargs: Any
    ) -> Self:
        """Load a saved backbone from a folder or the hub; ``adapter_base`` as for the class."""
        kwargs["trust_remote_code"] = False  # plain Sentence Transformers only gets here with it on
        defaults = {**(kwargs.pop("init_defaults", None) or {}), "adapter_base": adapter_base}
        return super().load(model_name_or_path, init_defaults=defaults, **kwargs)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the weights (with LoRA: the adapter and the token rows alone), the tokenizer and the configuration."""
        if not has_lora(self.model):
            return super().save(output_path, *args, safe_serialization=safe_serialization, **kwargs)
        save_lora(self.model, output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``token_embeddings``, the decoder's last hidden states of shape (batch, length, hidden).

        On a CPU a batch of texts runs as one packed row, so that padding costs nothing; its states are then zero.
        """
        mask = features.get("attention_mask")
        if mask is not None and mask.dim() == 2 and "input_ids" in features and self.packs_on(mask.device):
            real = mask.bool()
            owner = torch.arange(len(mask))[:, None].expand_as(mask)[real][None]
            ids = features["input_ids"][real][None]
            states = self.hidden_states(ids, torch.full_like(ids, int(Segment.CONTEXT)), owner)
            padded = states.new_zeros(*mask.shape, states.shape[-1])
            features["token_embeddings"] = padded.masked_scatter(real[..., None], states)
            return features
        inputs = {key: features[key] for key in ("input_ids", "inputs_embeds", "attention_mask") if key in features}
        features["token_embeddings"] = self.decoder(**inputs, use_cache=False, return_dict=True).last_hidden_state
        return features

    def packs_on(self, device: torch.device) -> bool:
        """Tell whether :meth:`forward` runs a batch on this device as one packed row."""
        return device.type == "cpu" and self.model.config._attn_implementation == IMPLEMENTATION

    def hidden_states(
        self,
        input_ids: Tensor,
        segments: Tensor,
        examples: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Run rows under the bottleneck mask.

        Args:
            input_ids: Token ids of shape (batch, length).
            segments: :class:`~lbr_st.model.mask.Segment` of each position, of the same shape.
            examples: For a packed row, of shape (1, length), the example that each position belongs to. None where each
                row is one example, padded on either side.
            inputs_embeds: Vectors of shape (batch, length, hidden) to run instead of the tokens'.

        Returns:
            Last hidden states of shape (batch, length, hidden).
        """
        if examples is None:
            positions = (segments.ne(0).cumsum(dim=1) - 1).clamp(min=0)
        else:
            steps = torch.arange(examples.shape[1], device=examples.device)[None]
            begins = torch.nn.functional.pad(examples[:, 1:] != examples[:, :-1], (1, 0), value=True)
            positions = steps - (steps * begins).cummax(dim=1).values
        mask = attention_mask(segments, self.model.config, self.model.dtype, examples)
        inputs: dict[str, Tensor] = {"input_ids": input_ids}
        if inputs_embeds is not None or has_lora(self.model):
            inputs = {"inputs_embeds": self.embed(input_ids) if inputs_embeds is None else inputs_embeds}
        return self.decoder(
            **inputs, attention_mask=mask, position_ids=positions, use_cache=False, return_dict=True
        ).last_hidden_state

    @property
    def head(self) -> Head:
        """The language-modelling head over the tokens that text is made of.

        Rows from the first bottleneck token on are left out: no text holds these tokens, so none is ever predicted or
        takes part in the softmax. Under LoRA the head then has no trained row.
        """
        config = self.model.config.get_text_config()
        layer = self.model.get_output_embeddings()
        layer = getattr(layer, "original_module", None) or layer  # under LoRA, a tied head is in peft's wrapper
        if not isinstance(layer, nn.Linear):
            what = f"the language-modelling head is a {type(layer).__name__}, not a plain linear layer."
            raise LBRError(what, where=self.base, fix="Choose another base.")
        size = min(self.bottleneck_ids, default=len(layer.weight))
        return Head(
            layer.weight[:size],
            None if layer.bias is None else layer.bias[:size],
            # Three published variants of the head; check_head refuses a base whose head is any other.
            scale=(getattr(config, "logit_scale", None) or 1.0)  # Cohere
            / (getattr(config, "logits_scaling", None) or 1.0),  # Granite
            softcap=getattr(config, "final_logit_softcapping", None),  # Gemma 2 and later
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states of shape (…, hidden) to the next-token logits of :attr:`head`."""
        return self.head.logits(hidden)

    @torch.no_grad()
    def check_causal(self) -> None:
        """Prove on four tokens that no position sees a later one.

        Raises:
            LBRError: One does: the base reads in both directions.
        """
        ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0]], device=self.model.device)
        states = [self.decoder(input_ids=row[None], use_cache=False, return_dict=True).last_hidden_state for row in ids]
        one, other = (row[:, :-1].float() for row in states)
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * one.abs().max().item(), equal_nan=True):
            what = "it is not causal: its attention is bidirectional, and a target would see what follows it."
            raise LBRError(what, where=self.base, fix="Give a base or an embedder whose attention is causal.")

    def check_head(self) -> None:
        """Prove on four tokens that :meth:`logits` is this architecture's own head.

        Raises:
            LBRError: It is not, so that stage 1 would train against wrong probabilities.
        """
        was_training = self.model.training
        self.model.eval()
        ids = torch.arange(4, device=self.model.device)[None]
        with torch.no_grad():
            expected = self.model(input_ids=ids, use_cache=False).logits.float()
            hidden = self.decoder(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
            found = self.logits(hidden).float()
            difference = (found - expected[..., : found.shape[-1]]).abs().max().item()
        self.model.train(was_training)
        if not difference <= 1e-2 * max(1.0, expected.abs().max().item()):
            kind = type(self.model).__name__
            what = f"unknown form of language-modelling head: {kind}'s logits differ by {difference:.3g}."
            raise LBRError(what, where=self.base, fix="Choose another base, or report this one.")


def load_causal_lm(name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal LM with ``AutoModelForCausalLM``, from safetensors only.

    Of an embedder, which is often saved without its head, a head that is tied is rebuilt from the embeddings.

    Raises:
        LBRError: ``name`` is an encoder or an encoder-decoder, or weights are missing, such as an untied head.
    """
    architectures = getattr(kwargs.get("config"), "architectures", None) or []
    headless = architectures and not any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures)
    if headless and (type(kwargs["config"]) in ENCODERS or embedder_prompts(name) is None):
        what = f"{architectures[0]} is not a causal language model."
        raise LBRError(what, where=name, fix="Give a decoder-only base with a head, such as Qwen/Qwen3-0.6B.")
    options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
    model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    if missing := sorted(info["missing_keys"]):
        head = next((key for key, module in model.named_modules() if module is model.get_output_embeddings()), None)
        if head and all(key.startswith(f"{head}.") for key in missing):
            what = "the language-modelling head is missing, and as it is not tied to the embeddings, cannot be rebuilt."
            raise LBRError(what, where=name, fix="Give a base that was saved with its head, or whose head is tied.")
        # transformers would fill them with random numbers and only warn.
        what = f"{len(missing)} of its weights are missing, such as {missing[0]}."
        raise LBRError(what, where=name, fix="The model is damaged: save or download it again.")
    return model


def make_room(model: PreTrainedModel, num_tokens: int) -> None:
    """Grow the vocabulary to ``num_tokens`` rows where it is smaller (many bases have spare rows already).

    New rows become the mean of the old ones, in the head as well. Nothing is random: a base that is grown again for a
    saved adapter must equal the one that the adapter was trained on.
    """
    old = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if num_tokens <= old:
        return
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = cast(Tensor, end.weight)
            weight[old:] = weight[:old].mean(dim=0)
