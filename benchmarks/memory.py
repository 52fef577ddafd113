"""Peak memory: of the loss over a large vocabulary, and of a big contrastive batch. Each in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time

from rows import Row, in_a_process

TOKENS, VOCABULARY, HIDDEN = 8192, 151_936, 1024
"""A head of the size of Qwen3-0.6B's."""


def peak_gib() -> float:
    """Return the most memory that this process has held, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def held_gib() -> float:
    """Return the memory that this process holds, in GiB."""
    import psutil

    return psutil.Process().memory_info().rss / 2**30


def loss_peak(how: str, device: str) -> dict[str, float]:
    """Return how much the loss and its gradient take beyond states and head (bfloat16), in GiB, and the seconds."""
    import torch

    from lbr_st.model.nll import Head, nll_sum

    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16, device=device).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=torch.bfloat16, device=device) * 0.05
    labels = torch.arange(TOKENS, device=device)
    gpu = device == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**30 if gpu else held_gib()
    started = time.perf_counter()
    if how == "chunked":
        loss = nll_sum(hidden, labels, Head(weight)) / TOKENS
    elif how == "torch":
        options = torch.nn.LinearCrossEntropyOptions()
        loss = torch.nn.functional.linear_cross_entropy(hidden, weight, labels, options=options)
    else:
        loss = torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), labels)
    loss.backward()
    value = loss.item()
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else peak_gib()
    return {"gib": peak - before, "seconds": time.perf_counter() - started, "loss": value}


def contrastive_peak(pairs: int, tokens: int) -> dict[str, float]:
    """Return the peak of a whole process that takes one step of stage 2 with that many pairs, in GiB."""
    import lbr_st
    from lbr_st.domains.tasks import domain_task
    from lbr_st.recipe import RepresentConfig

    data = domain_task("chebi").train_pairs.shuffle(seed=0).select(range(2 * pairs))
    model = lbr_st.build_model("smollm2-135m", lora_rank=32, max_seq_length=192)
    config = RepresentConfig(max_steps=1, batch_size=pairs, mini_batch_tokens=tokens, warmup_steps=0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = lbr_st.represent(model, data, config, output_dir=folder, save_strategy="no", show_progress_bar=False)
    return {"gib": peak_gib(), "seconds": time.perf_counter() - started, "loss": log[0]["loss"]}


def loss_row(command: str, device: str = "cpu") -> Row:
    """Measure the loss's memory against that of materialised logits."""
    where = " on a GPU" if device == "cuda" else ""
    row = Row(
        f"peak memory of the loss{where}, {TOKENS:,} tokens × {VOCABULARY:,} × {HIDDEN:,}",
        "materialised logits, softmax in float32",
        command,
        0.25,
        at_most=True,
    )
    found = {how: in_a_process(__file__, how, device) for how in ("chunked", "materialised", "torch")}
    shown = {how: f"{one['gib']:.2f} GiB, {one['seconds']:.1f} s, loss {one['loss']:.4f}" for how, one in found.items()}
    row.note = (
        "Beyond hidden states and weight, both bfloat16; the weight is frozen, as under LoRA. A trained one adds its "
        "own gradient to either side. torch is torch.nn.functional.linear_cross_entropy in chunks, not used here."
    )
    return row.measured([found["chunked"]["gib"] / found["materialised"]["gib"]], **shown)


def contrastive_row(command: str) -> Row:
    """Measure a batch of 1,024 pairs in stage 2."""
    row = Row("peak memory of a stage-2 step with 1,024 pairs", "8 GB, the whole process", command, 8.0, True, " GB")
    found = in_a_process(__file__, "contrastive", "1024", "2048")
    row.note = (
        "SmolLM2-135M with LoRA, ChEBI names and definitions whole (192 tokens at most), bfloat16 where the processor "
        "has it, represent.mini_batch_tokens 2048."
    )
    return row.measured(
        [found["gib"] * 2**30 / 1e9], seconds=f"{found['seconds']:.0f}", loss=f"{found['loss']:.3f}, chance is 6.931"
    )


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    print(json.dumps(contrastive_peak(*map(int, numbers)) if what == "contrastive" else loss_peak(what, *numbers)))
