"""The arithmetic: bfloat16 autocast where the hardware has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lbr_st.errors import LBRError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Tell whether to run under bfloat16 autocast; the weights stay float32.

    Args:
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where ``device`` has instructions for it
            (elsewhere autocast is slower than float32).
        device: Where the model runs.

    Raises:
        LBRError: ``precision`` is none of these.
    """
    import torch

    if precision not in ("float32", "bfloat16", "auto"):
        raise LBRError(f"unknown precision {precision!r}.", where="precision", fix="Use float32, bfloat16 or auto.")
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public name for the question on a CPU before 2.13.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())


def encoding_options(precision: str) -> dict[str, Any]:
    """Return the ``model_kwargs`` with which Sentence Transformers encodes without padding, where it can.

    It can with FlashAttention 2 on a GPU in bfloat16 (its ``unpad_inputs``).

    Args:
        precision: As for :func:`use_bfloat16`.
    """
    import torch
    from transformers.utils import is_flash_attn_2_available

    able = torch.cuda.is_available() and is_flash_attn_2_available() and use_bfloat16(precision, torch.device("cuda"))
    return {"attn_implementation": "flash_attention_2"} if able else {}
