"""Memory: of the loss over a large vocabulary, of a big contrastive batch, of whole trainings, and by growing sizes.

    python benchmarks/memory.py sizes     # the table of docs/SCALING.md, computed on the meta device

What is measured runs in its own process (other words on the command line), which begins with empty memory.
"""

from __future__ import annotations

import json
import random
import string
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import GIB, HERE, Row, in_a_process, machine, peak_gib, versions

TOKENS, VOCABULARY, HIDDEN = 8192, 151_936, 1024
"""A head of the size of Qwen3-0.6B's."""

SWEEPS: dict[str, list[dict[str, int]]] = {
    "context length": [{"context": n, "batch": max(n + 64, 2048)} for n in (128, 512, 2048, 4096)],
    "batch tokens": [{"batch": n} for n in (512, 1024, 2048, 4096)],
    "k": [{"k": n} for n in (1, 4, 16, 32)],
}
DEFAULTS = {"context": 64, "batch": 2048, "k": 4}
TARGET = 64
POINTS = HERE / "growth.json"

# The shapes of Qwen/Qwen3-0.6B, -4B and -8B, from their configurations on the hub.
SHAPES = {
    "0.6B": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072},
    "4B": {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728},
    "8B": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288},
}


# --- the loss ---------------------------------------------------------------------------------------------------------


def loss_peak(how: str, device: str) -> dict[str, float]:
    """Return how much the loss and its gradient take beyond states and head (bfloat16), in GiB, and the seconds."""
    import psutil
    import torch

    from lbr_st.model.nll import Head, nll_sum

    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16, device=device).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=torch.bfloat16, device=device) * 0.05
    labels = torch.arange(TOKENS, device=device)
    gpu = device == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    before = (torch.cuda.memory_allocated() if gpu else psutil.Process().memory_info().rss) / GIB
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
    peak = torch.cuda.max_memory_allocated() / GIB if gpu else peak_gib()
    return {"gib": peak - before, "seconds": time.perf_counter() - started, "loss": value}


def memory(command: str, device: str = "cpu") -> list[Row]:
    """Measure the loss's memory against that of materialised logits."""
    where = " on a GPU" if device == "cuda" else ""
    name = f"peak memory of the loss{where}, {TOKENS:,} tokens × {VOCABULARY:,} × {HIDDEN:,}"
    row = Row(name, "materialised logits, softmax in float32", command, 0.25, at_most=True)
    found = {how: in_a_process(__file__, "loss", how, device) for how in ("chunked", "materialised", "torch")}
    shown = {how: f"{one['gib']:.2f} GiB, {one['seconds']:.1f} s, loss {one['loss']:.4f}" for how, one in found.items()}
    row.note = (
        "Beyond hidden states and weight, both bfloat16; the weight is frozen, as under LoRA. A trained one adds its "
        "own gradient to either side. torch is torch.nn.functional.linear_cross_entropy in chunks, not used here."
    )
    return [row.measured([found["chunked"]["gib"] / found["materialised"]["gib"]], **shown)]


# --- a big contrastive batch ------------------------------------------------------------------------------------------


def contrastive(command: str) -> list[Row]:
    """Measure a batch of 1,024 pairs in stage 2."""
    from speed import BASE, product

    from lbr_st.domains.tasks import domain_task

    row = Row("peak memory of a stage-2 step with 1,024 pairs", "8 GB, the whole process", command, 8.0, True, " GB")
    row.note = (
        "SmolLM2-135M with LoRA, ChEBI names and definitions whole (192 tokens at most), in the arithmetic that is "
        "faster here, represent.mini_batch_tokens 2048."
    )
    data = domain_task("chebi").train_pairs.shuffle(seed=0).select(range(2048))
    pairs = {name: list(data[name]) for name in ("query", "document")}
    model, config = {"base": BASE, "lora_rank": 32, "max_seq_length": 192}, {"batch_size": 1024}
    with product("represent", model, pairs, HERE.parent, mini_batch_tokens=2048, **config) as worker:
        found = worker.ask()
    return [row.measured([found["gib"] * GIB / 1e9], seconds=f"{found['seconds']:.0f}")]


# --- whole trainings --------------------------------------------------------------------------------------------------


def run_peak(file: str, output: str, *options: str) -> dict[str, float]:
    """Return the peak of a process that is ``lbr-st train`` on a file, in GiB."""
    from lbr_st.cli import main

    started = time.perf_counter()
    if status := main(["train", "--data.source", file, "--output", output, *options]):
        sys.exit(status)
    return {"gib": peak_gib(), "seconds": time.perf_counter() - started}


def training(command: str) -> list[Row]:
    """Measure a run of the command line, and stage 1 of a larger base."""
    count, steps = 300, {"learn.max_steps": 4, "learn.eval_steps": 2, "represent.max_steps": 3}
    run = Row("peak memory of lbr-st train, 135M base, defaults", "3 GB, the whole process", command, 3.0, True, " GB")
    run.note = (
        f"A made-up .csv file of {count} pairs, each text longer than 256 tokens, where it is cut; all values are the "
        f"defaults but {', '.join(f'{key} {value}' for key, value in steps.items())}."
    )
    draw = random.Random(0)
    texts = [" ".join("".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(150)) for _ in range(2 * count)]
    lines = ["query,document", *map(",".join, zip(texts[:count], texts[count:], strict=True))]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
        words = [f"--{key}={value}" for key, value in steps.items()]
        found = in_a_process(__file__, "run", f"{folder}/pairs.csv", f"{folder}/model", *words)
    run.measured([found["gib"] * GIB / 1e9], seconds=f"{found['seconds']:.0f}")
    return [run, larger_base(command)]


def larger_base(command: str, shape: str = "0.6B") -> Row:
    """Measure stage 1 of a base in a published shape."""
    import gpu
    from speed import product, random_ids, useful

    row = Row(f"peak memory of stage 1, {shape} base, LoRA", "8 GB, the whole process", command, 8.0, True, " GB")
    examples = random_ids([(64, 63)] * 16, gpu.SHAPES[shape]["vocab_size"] - 22)
    columns = ([" ".join(f"w{token}" for token in text) for text in column] for column in zip(*examples, strict=True))
    row.note = (
        f"Qwen3-{shape}'s shape with random weights, kept in float32, LoRA rank 32, {useful(examples):,} tokens a "
        "step, by our trainer with its defaults; the third step's speed."
    )
    with tempfile.TemporaryDirectory() as base:
        gpu.random_base(Path(base), shape)
        pairs = dict(zip(("context", "target"), columns, strict=True))
        whole = {"max_target_tokens": None, "batch_tokens": None}
        with product("learn", {"base": base, "lora_rank": 32}, pairs, HERE.parent, **whole) as worker:
            found = [worker.ask() for _ in range(3)][-1]
            arithmetic = "bfloat16 autocast" if worker.ready["bfloat16"] else "float32"
    speed = f"{useful(examples) / found['seconds']:.0f}"
    return row.measured([found["gib"] * GIB / 1e9], **{"tokens/s": speed, "arithmetic": arithmetic})


# --- how cost grows ---------------------------------------------------------------------------------------------------


def growth_point(tree: Path, context: int, batch: int, k: int) -> dict[str, float]:
    """Measure stage 1 on examples of ``context`` + 64 tokens, as many as make up ``batch`` tokens, in a checkout."""
    from speed import BASE, base_tokenizer, documents, product

    count = max(1, batch // (context + TARGET))
    lengths = {"context": context, "target": TARGET - 1}
    pairs = {name: documents(base_tokenizer(), count, tokens) for name, tokens in lengths.items()}
    model = {"base": BASE, "num_bottleneck_tokens": k, "lora_rank": 32, "max_seq_length": context + k + TARGET}
    with product("learn", model, pairs, tree, max_target_tokens=None, batch_tokens=None) as worker:
        found = [worker.ask() for _ in range(3)]  # the first also prepares
    speed = count * (context + TARGET) / min(one["seconds"] for one in found)
    return {"tokens_per_second": speed, "gib": found[-1]["gib"], "examples": count}


def growth(command: str, tree: Path | None = None) -> list[Row]:
    """Draw the figure of how tokens a second and peak memory grow, which is no row.

    Without an older checkout in ``tree``, its line stays as it was measured.
    """
    lines = json.loads(POINTS.read_text(encoding="utf-8")).get("lines", {})
    for line, place in [("before", tree), ("after", HERE.parent)] if tree else [("after", HERE.parent)]:
        found: dict[str, list[dict[str, float]]] = {}
        for sweep, settings in SWEEPS.items():
            found[sweep] = []
            for setting in settings:
                chosen = {**DEFAULTS, **setting}
                found[sweep].append({**chosen, **growth_point(place, **chosen)})
                print(line, sweep, found[sweep][-1], flush=True)
        lines[line] = {"machine": machine(), "versions": versions(), "sweeps": found}
    POINTS.write_text(json.dumps({"lines": lines}, indent=1) + "\n", encoding="utf-8")
    draw(lines)
    return []


def draw(lines: dict[str, Any]) -> None:
    """Draw the figure from the points of each line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    titles = {"context": "context length, tokens", "batch": "tokens per step", "k": "k, bottleneck tokens"}
    colours = {"before": "#b0b0b0", "after": "#1f5f8b"}
    for column, (key, title) in enumerate(titles.items()):
        for line, data in lines.items():
            points = list(data["sweeps"].values())[column]
            at = [one[key] for one in points]
            for axis, name in zip(axes[:, column], ("tokens_per_second", "gib"), strict=True):
                axis.plot(at, [one[name] for one in points], marker="o", color=colours[line], label=line)
                axis.set_xscale("log", base=2)
                axis.set_xticks(at, [f"{value:,}" for value in at], fontsize=7)
                axis.minorticks_off()
                axis.grid(visible=True, alpha=0.3)
        axes[-1, column].set_xlabel(title)
    for axis, label in zip(axes[:, 0], ("useful tokens / s", "peak memory, GiB"), strict=True):
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)  # the three share it
    axes[0, 0].legend()
    figure.suptitle(
        f"A stage-1 step, SmolLM2-135M with LoRA, targets of {TARGET} tokens; otherwise contexts of "
        f"{DEFAULTS['context']}, {DEFAULTS['batch']:,} tokens a step, k = {DEFAULTS['k']}\n{lines['after']['machine']}",
        fontsize=9,
    )
    figure.savefig(HERE / "growth.png", dpi=110)


# --- published shapes -------------------------------------------------------------------------------------------------


def sizes(tokens: int = 4096, rank: int = 32) -> None:
    """Print what training takes by the sizes of published backbones, for steps of ``tokens`` tokens in one process."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from lbr_st.model.lora import add_lora

    names = ["backbone", "weights (10⁹)", "trained by LoRA (10⁶)", "LoRA, ddp", "LoRA, fsdp2 on 8", "all weights, ddp"]
    names += ["all weights, fsdp2 on 8", "QLoRA, ddp", "+ activations", "+ the same, recomputed"]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for name, shape in SHAPES.items():
        rest = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": VOCABULARY}
        config = Qwen3Config(**shape, **rest, tie_word_embeddings=name != "8B")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            weights = sum(parameter.numel() for parameter in model.parameters())
            modules = model.base_model.modules()
            linear = sum(module.weight.numel() for module in modules if isinstance(module, torch.nn.Linear))
            add_lora(model, [0, 1, 2, 3], base=name, rank=rank, alpha=2 * rank)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        # float32 weights; what is trained also has gradients and Adam's two moments, in float32 as well.
        lora, full = 4 * weights + 16 * trained, 16 * weights
        # 4.127 bits a weight with the second quantisation of the scales (arXiv 2305.14314); embeddings, norms and head
        # are kept in float32.
        qlora = linear * 4.127 / 8 + 4 * (weights - linear) + 16 * trained
        # Bytes a token and layer in 16 bits, attention's own left out, and with recomputation (arXiv 2205.05198).
        state = config.hidden_size * config.num_hidden_layers * tokens
        figures = [lora, lora / 8, full, full / 8, qlora, 34 * state, 2 * state]
        cells = [name, f"{weights / 1e9:.2f}", f"{trained / 1e6:.0f}", *(f"{figure / GIB:.1f}" for figure in figures)]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "sizes":
        sizes()
    else:
        print(json.dumps({"loss": loss_peak, "run": run_peak}[what](*words)))
