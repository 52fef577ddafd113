"""Gradient checkpointing on = off: activations that are computed again in the backward pass change nothing, to the bit,
in either stage, with LoRA or without, and under the cached loss, which embeds twice itself."""

import pytest
import torch
from trajectories import HARD, Trajectory, learned, represented
from transformers.models.llama.modeling_llama import LlamaMLP

from lbr_st.model.build import build_model

STAGES = {
    "attention": (learned, {}),
    "embedding": (learned, {"bottleneck": "embedding"}),
    "none": (learned, {"bottleneck": "none"}),
    "represent": (represented, {}),
    "cached": (represented, {"mini_batch_tokens": 60}),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4, "lora_dropout": 0.2}], ids=["full", "lora, dropout"])
def test_computing_again_changes_nothing(tiny_base, tmp_path, monkeypatch, stage, options):
    passes = []  # with gradients, through a module inside of what is computed again
    real = LlamaMLP.forward

    def forward(self, *args, **kwargs):
        passes.append(torch.is_grad_enabled())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LlamaMLP, "forward", forward)

    def run(**arguments) -> tuple[Trajectory, int]:
        passes.clear()
        train, config = STAGES[stage]
        model = build_model(tiny_base("llama"), num_bottleneck_tokens=2, max_seq_length=64, device="cpu", **options)
        pairs = {} if train is learned else {"pairs": HARD}
        trajectory, count = train(model, tmp_path, config, **pairs, **arguments), sum(passes)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        return trajectory, count

    plain, once = run()
    again, twice = run(gradient_checkpointing=True)
    assert twice == 2 * once > 0
    assert again.logs == plain.logs
    for name, weight in plain.weights.items():
        assert torch.equal(again.weights[name], weight), name
