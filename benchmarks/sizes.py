"""Memory that training takes by the sizes of published backbones: computed on the meta device, nothing is loaded.

python benchmarks/sizes.py     # the table of docs/SCALING.md
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from lbr_st.model.lora import add_lora

# The shapes of Qwen/Qwen3-0.6B, -4B and -8B, from their configurations on the hub.
SHAPES = {
    "0.6B": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072},
    "4B": {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728},
    "8B": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288},
}
TOKENS = 4096
"""In a step of one process: the default of ``learn.batch_tokens``."""
RANK = 32
GIB = 2**30


def row(name: str) -> str:
    """Return a backbone's row of the table."""
    config = Qwen3Config(
        **SHAPES[name], num_key_value_heads=8, head_dim=128, vocab_size=151_936, tie_word_embeddings=name != "8B"
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        weights = sum(parameter.numel() for parameter in model.parameters())
        linear = sum(
            module.weight.numel() for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)
        )
        add_lora(model, [0, 1, 2, 3], base=name, rank=RANK, alpha=2 * RANK)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # float32 weights; for what is trained, gradients and Adam's two moments beside them, in float32 as well.
    lora = 4 * weights + 16 * trained
    full = 16 * weights
    # 4.127 bits a weight with the second quantisation of the scales (arXiv 2305.14314); embeddings, norms and head are
    # kept in float32.
    qlora = linear * 4.127 / 8 + 4 * (weights - linear) + 16 * trained
    # Bytes a token and layer in 16 bits, attention's own left out, and with recomputation (arXiv 2205.05198).
    state = config.hidden_size * config.num_hidden_layers * TOKENS
    figures = [lora, lora / 8, full, full / 8, qlora, 34 * state, 2 * state]
    cells = [f"{weights / 1e9:.2f}", f"{trained / 1e6:.0f}", *(f"{figure / GIB:.1f}" for figure in figures)]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    names = ["weights (10⁹)", "trained by LoRA (10⁶)", "LoRA, ddp", "LoRA, fsdp2 on 8", "all weights, ddp"]
    names += ["all weights, fsdp2 on 8", "QLoRA, ddp", "+ activations", "+ the same, recomputed"]
    print(f"| backbone | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for name in SHAPES:
        print(row(name))


if __name__ == "__main__":
    main()
