"""The proof's training step with fewer kernels (benchmarks/proof/fewer_kernels.py) is the step that it stands for."""

import pytest
import torch
from trajectories import learned, represented
from transformers.models.llama import modeling_llama

import lbr_st.training.trainer
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.model.build import build_model


@pytest.fixture
def fewer_kernels(proof, monkeypatch):
    """The module; everything that it changes is put back afterwards."""
    module, trainer = proof.fewer_kernels, lbr_st.training.trainer
    monkeypatch.setattr(module.Linear, "forward", module.Linear.forward)
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", modeling_llama.LlamaRMSNorm.forward)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    monkeypatch.setattr(trainer, "merged_while_training", trainer.merged_while_training)
    return module


def trained(base, folder, bottleneck="attention", precision="bfloat16"):
    """Train a tiny model in both stages, the second in one piece and in several; return the losses and the adapters."""
    model = build_model(base, num_bottleneck_tokens=2, max_seq_length=24, lora_rank=4, lora_alpha=8, seed=0)
    own = {"precision": precision, "adam_epsilon": 1e-8, "use_cpu": True}
    rates = {"max_steps": 4, "learning_rate": 5e-3}
    stages = [learned(model, folder, {"bottleneck": bottleneck, "packed": False, "bag_weight": 1.0, **rates}, **own)]
    for budget in (4096, 64):
        stages.append(represented(model, folder, {"batch_size": 16, "mini_batch_tokens": budget, **rates}, **own))
    adapters = {name: weight for name, weight in stages[-1].weights.items() if "lora_" in name}
    return torch.cat([stage.of("loss") for stage in stages]), adapters, model


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
def test_the_same_training(tiny_base, tmp_path, fewer_kernels, bottleneck):
    base = tiny_base("llama")
    exact, _, _ = trained(base, tmp_path / "exact", bottleneck, "float32")
    losses, adapters, _ = trained(base, tmp_path / "before", bottleneck)
    fewer_kernels.install()
    again, others, model = trained(base, tmp_path / "after", bottleneck)
    assert len(losses) == 12
    assert (exact - again).abs().max() <= max(3 * (exact - losses).abs().max(), 0.02)
    for name, adapter in adapters.items():
        # Adam's first steps are signs of gradients: of those near 0 rounding decides.
        assert torch.nn.functional.cosine_similarity(adapter.flatten(), others[name].flatten(), dim=0) > 0.9, name
    assert not any("_place" in module.__dict__ for module in model.modules())


def test_gradients_of_one_step(tiny_base, fewer_kernels):
    model = build_model(tiny_base("llama"), num_bottleneck_tokens=2, max_seq_length=24, lora_rank=4, lora_alpha=8)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    decoder = backbone_of(model).model
    ids = torch.randint(4, 20, (3, 7))

    def gradients(**options):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, **options):
            decoder(input_ids=ids).logits.float().square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    exact, before = gradients(enabled=False), gradients()
    fewer_kernels.install()
    with fewer_kernels.grouped(model):
        after, without_autocast = gradients(), gradients(enabled=False)

    def far(found):
        squares = [((found[name] - exact[name]).norm() ** 2, exact[name].norm() ** 2) for name in exact]
        return float(sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5

    assert exact.keys() == after.keys()
    assert 0 < far(after) < 2 * far(before)
    assert far(without_autocast) < 1e-5
