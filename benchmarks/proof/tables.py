"""Tables and figures of the proof from the results on disk: every arm's seeds, intervals, and paired tests."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np

from lbr_st.evaluation.compare import format_p
from lbr_st.evaluation.plots import COLOURS, drawing
from lbr_st.evaluation.statistics import Paired, holm, mean_interval, paired

LBR = "LBR, attention bottleneck"
BM25 = "BM25"
FUSED = ", fused with BM25"
"""Of an arm's name, where its ranking and BM25's are fused by their reciprocal ranks."""
DRAWS = 100_000
"""Of the randomisation test: 1 in so many is the least p that it can show before correction."""
UNITS = (
    "Intervals are 95% bootstraps over things asked for (a thing's queries are averaged first, and then the seeds); "
    "p is the paired randomisation test (100,000 draws) over the same units against the reference, with Holm's "
    "correction over the table, or over the list below it of LBR against each other arm. Neither covers the choice of "
    "the seed; each seed's score is shown, with † if it was trained on a GPU. Two arms are compared over the seeds "
    "that both have. The bottleneck gain is what the right context saves on a target against another's, in nats per "
    "token, on held-out phrasings at the end of stage 1. Tokens and minutes are of training, "
    "both stages; machines differ, and other work ran beside: minutes are for orientation. Commands write to "
    "`results/`, where each result also has its versions, and its machine and arithmetic since they are recorded."
)


def units(result: dict) -> dict[str, float]:
    """Return the mean nDCG@10 of each thing asked for: ``q<thing>-<number>`` or ``q<thing>`` is a query's id."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for query, score in result["per_query"].items():
        head, _, tail = query.rpartition("-")
        scores[head if head and tail.isdigit() else query].append(score)
    return {thing: fmean(of) for thing, of in scores.items()}


def read(folder: Path) -> dict[str, list[dict]]:
    """Return the results of a study by arm, by seed."""
    arms: defaultdict[str, list[dict]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        arms[result["trial"]].append(result)
        if "fused" in result:
            name = f"{result['trial']}{FUSED}"
            arms[name].append({**result, **result["fused"], "trial": name, "after_learn": None})
    return {name: sorted(results, key=lambda one: one["seed"]) for name, results in arms.items()}


def averaged(results: list[dict]) -> np.ndarray:
    """Return the scores of each thing, the mean over the seeds: float64 of shape (things,)."""
    of_seeds = [units(result) for result in results]
    return np.array([fmean(one[thing] for one in of_seeds) for thing in sorted(of_seeds[0])])


def in_common(one: list[dict], other: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of two arms over the seeds that both have; what is not trained has no seed of its own."""
    seeds = [{result["seed"] for result in arm} for arm in (one, other) if any(map(trained, arm))]
    common = set.intersection(*seeds) if seeds else None
    if common is not None and not common:
        raise ValueError(f"{one[0]['trial']} and {other[0]['trial']} have no seed in common")
    both = [[result for result in arm if not trained(result) or result["seed"] in common] for arm in (one, other)]
    return averaged(both[0]), averaged(both[1])


def trained(result: dict) -> bool:
    """Tell whether a result is of a model that was trained on pairs."""
    return bool(result.get("represent_seconds"))


def reference_of(study: str, arms: dict[str, list[dict]]) -> str:
    """Return the arm that a study's others are tested against; of those tuned, contrastive-only's best."""
    if study.endswith("-ablations"):
        return "base"
    if study.endswith("-tune"):
        tuned = [name for name in arms if name.startswith("contrastive-only")]
        return max(tuned, key=lambda name: averaged(arms[name]).mean(), default="")
    return "contrastive only"


def made_on(result: dict) -> tuple[str, str]:
    """Return in which arithmetic a result was made, and on which kind of machine, without its load."""
    return result.get("arithmetic", ""), re.sub(r", \d+ cores.*", "", result.get("machine", ""))


def likest(references: list[dict], arm: dict) -> dict:
    """Return the run of the reference that was made most like an arm's: by machine, else arithmetic, else the first.

    One seed on two kinds of machine differs by as much as some ablations do.
    """
    arithmetic, machine = made_on(arm)
    return max(references, key=lambda one: (made_on(one) == (arithmetic, machine), made_on(one)[0] == arithmetic))


def table(folder: Path, order: list[str]) -> str:
    """Return a study's table in Markdown, of those arms in ``order`` that have results.

    What has ``base`` for its reference, one seed each, is tested against that run of it that is :func:`likest`: of the
    study's own and those in ``replicates``, which are listed.
    """
    arms = read(folder)
    reference = reference_of(folder.name, arms)
    names = [name for name in dict.fromkeys(order) if name in arms]
    again = read(folder.parents[1] / "replicates" / folder.name).get("base", []) if reference == "base" else []
    against = {name: arms.get(reference, []) for name in names}
    if again:
        against = {name: [likest(arms[reference] + again, arms[name][0])] for name in names}
    tests = {name: compared(against[name], arms[name]) for name in names if name != reference and against[name]}
    corrected = dict(zip(tests, holm([test.p_randomisation for test in tests.values()]), strict=True))
    lines = [
        "| arm | nDCG@10 | 95% interval | seeds | after stage 1 | bottleneck gain "
        f"| against {reference} | relative | p | tokens | minutes |",
        "|---|---:|:---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        cells = ["", "", ""]
        if name in tests:
            test = tests[name]
            difference = f"{test.difference:+.4f}" + (f" ({averaged(against[name]).mean():.4f})" if again else "")
            relative = f"{test.relative:+.1%}" if test.relative is not None else "–"
            cells = [difference, relative, format_p(corrected[name])]
        lines.append(row(name, arms[name], cells))
        if name == reference:
            lines += [row(f"{name}, again: {' on '.join(made_on(one))}", [one], cells) for one in again]
    alone = {name: arms[name] for name in names if not name.endswith(FUSED)}
    lines += of_lbr(alone, LBR)
    lines += of_lbr({name: arms[name] for name in names if name not in alone or name == BM25}, f"{LBR}{FUSED}")
    found = [line for of in arms.values() for result in of for line in result.get("contamination", [])]
    return "\n".join([*lines, "", *(f"- {line}" for line in dict.fromkeys(found))]).rstrip()


def row(name: str, results: list[dict], tested: list[str]) -> str:
    """Return the row of an arm from its seeds' results and the cells of its test against the reference."""
    scores = averaged(results)
    low, high = mean_interval([scores])
    seeds = " ".join(
        f"{fmean(units(result).values()):.4f}{'†' if 'NVIDIA' in result.get('machine', '') else ''}"
        for result in results
    )
    cells = [name, f"{scores.mean():.4f}", f"{low:.4f} to {high:.4f}", seeds]
    before = [result["after_learn"] for result in results if result.get("after_learn") is not None]
    cells.append(f"{fmean(before):.4f}" if before else "–")
    last = [result["gains"][-1] for result in results if result.get("gains")]
    gains = [one["eval_bottleneck_gain"] for one in last if "eval_bottleneck_gain" in one]
    cells.append(f"{fmean(gains):.2f}" if gains else "–")
    tokens, seconds = (
        [sum(one.get(f"{stage}_{what}", 0) for stage in ("learn", "represent")) for one in results]
        for what in ("tokens", "seconds")
    )
    spent = [
        f"{fmean(tokens) / 1e6:.2f} M" if any(tokens) else "–",
        f"{fmean(seconds) / 60:.0f}" if any(seconds) else "–",
    ]
    return f"| {' | '.join([*cells, *tested, *spent])} |"


def not_run(folder: Path, planned: list[tuple[str, int]]) -> str:
    """Return the line that names what a study has no result of, given arm and seed of each trial; empty if complete.

    Seeds are named where an arm has several.
    """
    done = {(name, result["seed"]) for name, results in read(folder).items() for result in results}
    if not done:
        return "Not run."
    seeds: defaultdict[str, list[int]] = defaultdict(list)
    for name, seed in planned:
        seeds[name].append(seed)
    missing = []
    for name, of in seeds.items():
        left = [seed for seed in of if (name, seed) not in done]
        if left and len(of) > 1:
            missing.append(f"{name} (seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))})")
        elif left:
            missing.append(name)
    return f"Not run: {'; '.join(missing)}." if missing else ""


def compared(reference: list[dict], arm: list[dict]) -> Paired:
    """Return the paired test of an arm against another."""
    before, after = in_common(reference, arm)
    return paired([before], [after], resamples=DRAWS)


def of_lbr(arms: dict[str, list[dict]], own: str) -> list[str]:
    """Return a list of what LBR, as ``own``, has more than each other arm, corrected over the list; [] without it."""
    others = [name for name in arms if name != own]
    if own not in arms or not others:
        return []
    tests = [compared(arms[name], arms[own]) for name in others]
    lines = [""]
    for name, test, p in zip(others, tests, holm([test.p_randomisation for test in tests]), strict=True):
        (low, high), relative = test.interval, "" if test.relative is None else f", {test.relative:+.1%}"
        lines.append(
            f"- {own}, against {name}: {test.difference:+.4f} ({low:+.4f} to {high:+.4f}){relative}, {format_p(p)}."
        )
    return lines


def plot(folder: Path, order: list[str], path: Path) -> list[Path]:
    """Draw each arm's mean with its 95% interval over things asked for, and a dot for each seed, as PNG and SVG."""
    results = read(folder)
    names = [name for name in order if name in results]
    reference = reference_of(folder.name, results)
    told = f"Arms: {'; '.join(names)}."
    with drawing(path, 8, 1.2 + 0.3 * len(names), folder.name, told) as (figure, paths):
        axes = figure.subplots()
        for place, name in enumerate(names):
            scores = averaged(results[name])
            low, high = mean_interval([scores])
            colour = COLOURS[1] if name.startswith("LBR") or name == "base" else COLOURS[0]
            axes.barh(place, scores.mean(), color=colour, alpha=0.35)
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            seeds = [fmean(units(result).values()) for result in results[name]]
            axes.plot(seeds, [place] * len(seeds), "o", color=colour, markersize=4)
            if name == reference:
                axes.axvline(scores.mean(), color=COLOURS[-1], linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        split = results[names[0]][0]["split"]
        axes.set_xlabel(f"nDCG@10 on {split} queries; line: 95% interval over things asked for; dots: seeds")
        axes.set_title(folder.name, loc="left", fontweight="bold")
    return paths
