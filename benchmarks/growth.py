"""How cost grows: tokens a second and peak memory of a stage-1 step against context length, batch tokens, and k."""

from __future__ import annotations

import argparse
import json
import random

import torch
from rows import HERE, in_a_process, machine, versions

SWEEPS: dict[str, list[dict[str, int]]] = {
    "context length": [{"context": n, "batch": max(n + 64, 2048)} for n in (128, 512, 2048, 8192)],
    "batch tokens": [{"batch": n} for n in (512, 1024, 2048, 4096)],
    "k": [{"k": n} for n in (1, 4, 16, 32)],
}
DEFAULTS = {"context": 64, "batch": 2048, "k": 4}
TARGET = 64
POINTS = HERE / "growth.json"


def point(context: int, batch: int, k: int) -> dict[str, float]:
    """Measure one setting: examples of ``context`` + 64 tokens, as many as make up ``batch`` tokens."""
    from memory import peak_gib
    from stage1 import Training, ours

    import lbr_st
    from lbr_st.bottleneck.passes import backbone_of

    longest = context + k + TARGET
    model = lbr_st.build_model(
        "smollm2-135m", num_bottleneck_tokens=k, lora_rank=32, max_seq_length=max(longest, context + k + 8)
    ).train()
    draw = random.Random(0)
    vocabulary = min(backbone_of(model).bottleneck_ids)
    count = max(1, batch // (context + TARGET))
    examples = [
        ([draw.randrange(vocabulary) for _ in range(context)], [draw.randrange(vocabulary) for _ in range(TARGET - 1)])
        for _ in range(count)
    ]
    run = Training(model, ours(model), examples, count, merged=False)
    # With the longest contexts a step takes minutes; the extra of a first step does not matter there.
    speed = max(run() for _ in range(3 if context < 4096 else 1))
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"tokens_per_second": speed, "gib": gpu or peak_gib(), "examples": count}


def measure() -> None:
    """Measure every point in a process of its own, and draw the figure; points are written as they come."""
    found: dict[str, list[dict[str, float]]] = {}
    for sweep, settings in SWEEPS.items():
        found[sweep] = []
        for setting in settings:
            chosen = {**DEFAULTS, **setting}
            words = [f"--{name}={value}" for name, value in chosen.items()]
            found[sweep].append({**chosen, **in_a_process(__file__, *words)})
            print(sweep, found[sweep][-1], flush=True)
    points = {"machine": machine(), "versions": versions(), "sweeps": found}
    POINTS.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    draw()


def draw() -> None:
    """Draw the figure from the points."""
    from matplotlib.figure import Figure

    data = json.loads(POINTS.read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    of_sweep = {
        "context length": ("context", "context length, tokens"),
        "batch tokens": ("batch", "tokens per step"),
        "k": ("k", "k, bottleneck tokens"),
    }
    for column, (sweep, points) in enumerate(data["sweeps"].items()):
        key, title = of_sweep[sweep]
        at = [one[key] for one in points]
        for line, (name, label) in enumerate((("tokens_per_second", "useful tokens / s"), ("gib", "peak memory, GiB"))):
            axis = axes[line][column]
            axis.plot(at, [one[name] for one in points], marker="o", color="#1f5f8b")
            axis.set_xscale("log", base=2)
            axis.set_xticks(at, [f"{value:,}" for value in at], fontsize=7)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            if line == 1:
                axis.set_xlabel(title)
            if column == 0:
                axis.set_ylabel(label)
    for line, name in enumerate(("tokens_per_second", "gib")):
        most = max(one[name] for points in data["sweeps"].values() for one in points)
        axes[line][0].set_ylim(0, 1.08 * most)  # the three share it
    figure.suptitle(
        f"A stage-1 step, SmolLM2-135M with LoRA, targets of {TARGET} tokens; otherwise contexts of "
        f"{DEFAULTS['context']}, {DEFAULTS['batch']:,} tokens a step, k = {DEFAULTS['k']}\n{data['machine']}",
        fontsize=9,
    )
    figure.savefig(HERE / "growth.png", dpi=110)


def main() -> None:
    """Measure one point, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in DEFAULTS:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--draw", action="store_true", help="Only draw the figure again.")
    given = parser.parse_args()
    if given.draw:
        draw()
    elif given.context is None:
        measure()
    else:
        print(json.dumps(point(given.context, given.batch, given.k)))


if __name__ == "__main__":
    main()
