"""How much of a batch a CPU runs at once: pieces sized by what a token leaves for the backward pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn

from lbr_st.bottleneck.passes import backbone_of
from lbr_st.compute import Precision, is_first, use_bfloat16, wait, world_size
from lbr_st.files import notice, write_whole
from lbr_st.model.merged import merged_while_training
from lbr_st.training.tokens import NUM_TOKENS

KEPT, KEPT_IN_BFLOAT16 = 0.45e9, 0.3e9
"""Bytes that the tokens run at once may keep under LoRA, if half of the free memory is not less: the 135M base then
stays within 3 GB. In bfloat16 merged weights are kept besides. A batch at once is an eighth faster (measured)."""
CHOSEN = "pieces.json"


def limit_pieces(
    model: SentenceTransformer, loss: nn.Module, rows: Dataset, folder: Path, *, precision: Precision, resume: bool
) -> Precision:
    """Have a loss run at most so many tokens at once as fit into memory, on a CPU in one process; return the precision.

    The number and the arithmetic, which ``"auto"`` times, are written next to the checkpoints. A resumed run takes the
    same, for the same weights to the bit, and other processes take the first one's arithmetic.
    """
    if model.device.type != "cpu":
        return precision
    kept = folder / CHOSEN
    if is_first() and not (resume and kept.is_file()):
        bfloat16 = use_bfloat16(precision, model.device, model)
        size, free = bytes_a_token(model, bfloat16=bfloat16), psutil.virtual_memory().available
        longest = int(np.max(rows.with_format("numpy")[NUM_TOKENS][:]))
        if longest * size > free:
            what = f"The longest row, {longest:,} tokens, needs {longest * size / 1e9:.1f} GB"
            notice(f"{what}, and {free / 1e9:.1f} are free. Lower --model.max_seq_length or close other programs.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        whole = all(parameter.requires_grad for parameter in backbone_of(model).parameters())  # 16 bytes each anyway
        most = free if whole else KEPT_IN_BFLOAT16 if bfloat16 else KEPT
        tokens = max(1, int(min(most, free / 2) / size))
        write_whole(kept, json.dumps({"tokens": tokens, "bytes_a_token": size, "bfloat16": bfloat16}))
    wait()
    chosen = json.loads(kept.read_text(encoding="utf-8"))
    if precision == "auto":
        precision = "bfloat16" if chosen["bfloat16"] else "float32"
    for module in loss.modules() if world_size() == 1 else ():
        if hasattr(module, "mini_batch_num_tokens"):
            module.mini_batch_num_tokens = min(chosen["tokens"], module.mini_batch_num_tokens or chosen["tokens"])
            notice(f"At most {module.mini_batch_num_tokens:,} tokens are run at once, in {precision}.")
    return precision


def bytes_a_token(model: SentenceTransformer, *, bfloat16: bool) -> int:
    """Return about how many bytes a pass through the decoder keeps of each token until its gradients are taken."""
    total = 0
    with merged_while_training(model):
        for layer in getattr(backbone_of(model).decoder, "layers", ()):
            linear = {n: one for n, one in layer.named_modules() if type(one) is nn.Linear and "lora_" not in n}
            if "forward" in layer.__dict__:  # two states in float32, and products that are not added to one of them
                kept = [one for name, one in linear.items() if "o_proj" not in name and "down_proj" not in name]
                total += 8 * kept[0].in_features + (2 if bfloat16 else 4) * sum(one.out_features for one in kept)
            else:  # measured: 5 to 6
                total += 6 * sum(one.in_features + one.out_features for one in linear.values())
    return max(total, 1)
