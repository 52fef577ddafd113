"""Scores of ``lbr-st evaluate``, filed anew under the name and revision of a submission."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import RECORDS, TaskScore, read_record, write_json
from lbr_st.submission.facts import mteb_tasks

PUBLIC, LOCAL = "results", "results_local"
META, SETTINGS = "model_meta.json", "run_settings.jsonl"


@dataclass(frozen=True)
class Filed:
    """Where scores went.

    Args:
        public: Tasks in ``results/``: public ones of MTEB on its own data, for the leaderboard.
        local: Tasks in ``results_local/``: those that the leaderboard does not have.
        left_out: A line for each score that was left where it is, with the reason.
    """

    public: list[str]
    local: list[str]
    left_out: list[str]


def file_results(source: Path | None, output: Path, meta: Any, digest: str) -> Filed:
    """Copy a model's results as MTEB lays them out; what lies in ``output`` already stays.

    Only scores of these very weights are taken, run as MTEB would run them: those whose record has the model's digest
    and no experiment. Results that an earlier call filed under the digest move to the revision that is known now.

    Args:
        source: The folder that ``lbr-st evaluate`` wrote; None for none.
        output: The submission's folder.
        meta: The ``ModelMeta`` of the written file.
        digest: The model's digest.

    Raises:
        LBRError: ``source`` holds no results.
    """
    for kind in (PUBLIC, LOCAL):
        _move(output / kind / meta.model_name_as_path(), digest, meta.revision)
    found, left_out = _own(source, digest) if source is not None else ({}, [])
    for task, (score, path) in sorted(found.items()):
        kind = PUBLIC if on_leaderboard(task, score.dataset_revision) else LOCAL
        target = output / kind / meta.model_name_as_path() / meta.revision / path.name
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            _add_settings(path.parent / SETTINGS, target.parent / SETTINGS, {task})
    tasks = {}
    for kind in (PUBLIC, LOCAL):
        folder = output / kind / meta.model_name_as_path() / meta.revision
        tasks[kind] = sorted(path.stem for path in folder.glob("*.json") if path.name != META)
        if tasks[kind]:
            write_json(folder / META, meta_dict(meta))
    return Filed(tasks[PUBLIC], tasks[LOCAL], left_out)


def meta_dict(meta: Any) -> dict[str, Any]:
    """Return what MTEB keeps in ``model_meta.json``."""
    content = json.loads(json.dumps(meta.to_dict(), default=str))
    content["training_datasets"] = sorted(meta.training_datasets)
    return dict(content)


def on_leaderboard(task: str, dataset_revision: str) -> bool:
    """Whether MTEB has a public task of this name with this very data."""
    metadata = mteb_tasks().get(task)
    return metadata is not None and metadata.is_public is not False and metadata.dataset["revision"] == dataset_revision


def _own(source: Path, digest: str) -> tuple[dict[str, tuple[TaskScore, Path]], list[str]]:
    """Return the latest score of each task and MTEB's file of it, and a line for each other one."""
    found: dict[str, tuple[TaskScore, Path]] = {}
    left_out = []
    records = sorted((source / RECORDS).rglob("*.json"))
    if not records:
        raise LBRError("there are no results here.", where=str(source), fix="Run `lbr-st evaluate MODEL` first.")
    for record in records:
        score, path = read_record(record), source / PUBLIC / record.relative_to(source / RECORDS)
        if score is None:
            left_out.append(f"{record.relative_to(source)}: cannot be read")
            continue
        reason = _reason(score, path, digest)
        if reason:
            left_out.append(f"{path.stem} of {score.name}: {reason}")
        elif path.stem not in found or found[path.stem][0].date < score.date:
            found[path.stem] = (score, path)
    return found, left_out


def _reason(score: TaskScore, path: Path, digest: str) -> str | None:
    if score.digest != digest:
        return "other weights or settings"
    if score.experiment:
        return "not run as MTEB's loader runs it"
    if not score.date:
        return "the run did not end"
    if not path.is_file():
        return f"{path.name} is missing"
    return None


def _move(model: Path, digest: str, revision: str) -> None:
    old, new = model / digest, model / revision
    if revision == digest or not old.is_dir():
        return
    new.mkdir(exist_ok=True)
    moved = {path.stem for path in old.glob("*.json") if not (new / path.name).exists()} - {Path(META).stem}
    _add_settings(old / SETTINGS, new / SETTINGS, moved)
    for task in moved:
        (old / f"{task}.json").rename(new / f"{task}.json")
    if all(path.name in (META, SETTINGS) or (new / path.name).exists() for path in old.iterdir()):
        shutil.rmtree(old)


def _add_settings(source: Path, target: Path, tasks: set[str]) -> None:
    """Append those of MTEB's notes on a run, one JSON object a line, that are of certain tasks."""
    if not source.is_file():
        return
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    with target.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines if json.loads(line).get("task") in tasks)
