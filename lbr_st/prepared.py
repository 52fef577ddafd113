"""All that precedes tokenising, done once and kept: pairs, held-out pairs, the check against the evaluation."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset

from lbr_st.data import DOMAIN_TASKS, RetrievalSet
from lbr_st.data.contamination_report import ContaminationReport
from lbr_st.data.domain_tasks import pinned_wheels
from lbr_st.data.lines import save_rows, scratch
from lbr_st.data.sources import is_local
from lbr_st.files import explain_disk_errors, new_folder, sha256_of
from lbr_st.learn_pairs import learn_pairs
from lbr_st.locks import alone
from lbr_st.recipe import EvaluateConfig, Recipe
from lbr_st.registry import notice
from lbr_st.training_data import evaluated, gather

FORMAT = 2
"""Of what is kept and of how it is made: raise it when a change of the code would make something else of a recipe."""
FOLDER = "prepared"
RECORD = "prepared.json"
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Prepared:
    """What a run trains on, memory-mapped from its folder, and what it is scored on, read when it is asked for.

    Args:
        folder: Where it is kept, and where what is made of it may be kept beside.
        pairs: ``query`` and ``document`` for stage 2; None if the recipe has none.
        learn_pairs: ``context`` and ``target`` for stage 1 or its replay, mixed; None if neither is trained.
        held_out: The same of texts that training never sees, for the bottleneck gain; None if there are too few.
        licences: A line for each source.
        contamination: As in :class:`~lbr_st.training_data.TrainingData`.
        evaluate: Which part of the held-out queries is evaluated.
        sources: Each source by its role (source, texts, pairs, also …): its ``name``, without where it lies, and the
            SHA-256 of its ``content``.
    """

    folder: Path
    pairs: Dataset | None
    learn_pairs: Dataset | None
    held_out: Dataset | None
    licences: list[str]
    contamination: list[ContaminationReport]
    evaluate: EvaluateConfig
    sources: dict[str, dict[str, Any]]

    @cached_property
    def test(self) -> RetrievalSet | None:
        """What is evaluated on; None if there are no held-out queries.

        Raises:
            LBRError: The recipe evaluates on dev queries, and there are none.
        """
        kept = json.loads((self.folder / FOLDER / EVALUATION).read_text(encoding="utf-8"))
        sets = {split: RetrievalSet(**whole) if whole else None for split, whole in kept.items()}
        return evaluated(sets["test"], sets["dev"], self.evaluate)


def prepare(recipe: Recipe, folder: Path | str, *, generative: bool | None = None) -> Prepared:
    """Read, check and pair what a recipe trains on, or take what was kept of that before.

    What is kept is taken if it was made of the same recipe, as far as the data depend on it, and of the same content:
    of local files by their SHA-256, wherever they are, of domain tasks by that of their wheels. A local source that
    is no longer there, as on another machine, is not missed. A dataset of the hub is known by its id and split: a run
    keeps the data that it began with.

    Args:
        recipe: The run.
        folder: Where it is kept; it can be copied to another place or machine.
        generative: Make pairs for stage 1; None if the recipe trains on such pairs in either stage.

    Raises:
        LBRError: As for :func:`~lbr_st.training_data.training_data` and :func:`~lbr_st.training_data.learn_pairs`.
    """
    folder = Path(folder)
    if generative is None:
        learn, represent = recipe.learn, recipe.represent
        replays = represent.enabled and represent.max_steps > 0 and represent.replay_weight > 0
        generative = (learn.enabled and learn.max_steps > 0) or replays
    key = _key(recipe, generative)
    kept, reason = _kept(recipe, folder, key)
    if kept is None:
        if reason:
            notice(reason)
        kept = _make_alone(recipe, folder, key, generative)
    else:
        notice(f"Data: prepared before, taken from {folder}.")
        for report in kept.contamination:
            if report.rows:
                notice(report.summary())
    return kept


def _make_alone(recipe: Recipe, folder: Path, key: dict[str, Any], generative: bool) -> Prepared:
    """Make the data while other processes of the same run wait, or take what one of them made meanwhile."""
    with alone(folder / FOLDER):
        kept, _ = _kept(recipe, folder, key)
        if kept is not None:
            return kept
        notice(f"Reading {recipe.data.source} …")
        _make(recipe, folder, key, generative)
    return _load(recipe, folder)


def _make(recipe: Recipe, folder: Path, key: dict[str, Any], generative: bool) -> None:
    for left in folder.glob(".reading.*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    with explain_disk_errors(folder):
        # Beside what is kept: the system's temporary folder is often small, and in memory.
        reading = TemporaryDirectory(prefix=".reading.", dir=folder, ignore_cleanup_errors=True)
    # The scratch folder goes first: killed between the two, a run would leave it to one that has nothing to make.
    with new_folder(folder / FOLDER, overwrite=True) as target, reading as aside, scratch(Path(aside)):
        data = gather(recipe)
        train, held_out = learn_pairs(recipe, data) if generative else (None, None)
        made = {"pairs": data.pairs, "learn": train, "held_out": held_out}
        tables = {name: table for name, table in made.items() if table is not None}
        for name, table in tables.items():
            save_rows(table, target / name)
        sets = {split: vars(whole) if whole else None for split, whole in (("test", data.test), ("dev", data.dev))}
        (target / EVALUATION).write_text(json.dumps(sets), encoding="utf-8")
        record = {
            "key": key,
            "rows": {name: len(table) for name, table in tables.items()},
            "sizes": {
                file.relative_to(target).as_posix(): file.stat().st_size
                for file in sorted(target.rglob("*"))
                if file.is_file()
            },
            "licences": data.licences,
            "contamination": [report.to_dict() for report in data.contamination],
        }
        (target / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _kept(recipe: Recipe, folder: Path, key: dict[str, Any]) -> tuple[Prepared | None, str]:
    """Return what is kept if it fits, else why not; nothing if there is nothing."""
    if not (folder / FOLDER).exists():
        return None, ""
    try:
        record = json.loads((folder / FOLDER / RECORD).read_text(encoding="utf-8"))
        if not _fits(record["key"], key):
            return None, "The data, or what the recipe makes of them, have changed."
        return _load(recipe, folder), ""
    except Exception as error:  # json, pyarrow and datasets raise their own
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        return None, f"What was kept in {folder / FOLDER} cannot be read ({reason}); it is made anew."


def _load(recipe: Recipe, folder: Path) -> Prepared:
    """Return what is kept.

    Raises:
        Exception: It is damaged.
    """
    place = folder / FOLDER
    record = json.loads((place / RECORD).read_text(encoding="utf-8"))
    for name, size in record["sizes"].items():
        if (place / name).stat().st_size != size:  # a file that was cut off may still be a valid, shorter one
            raise ValueError(f"{name} has another size")
    tables = {name: Dataset.load_from_disk(str(place / name), keep_in_memory=False) for name in record["rows"]}
    for name, rows in record["rows"].items():
        if len(tables[name]) != rows:
            raise ValueError(f"{name} has {len(tables[name])} rows, not {rows}")
    return Prepared(
        folder,
        tables.get("pairs"),
        tables.get("learn"),
        tables.get("held_out"),
        record["licences"],
        [ContaminationReport.from_dict(report) for report in record["contamination"]],
        recipe.evaluate,
        {
            role: {part: source[part] for part in ("name", "content")}
            for role, source in record["key"]["sources"].items()
        },
    )


def _key(recipe: Recipe, generative: bool) -> dict[str, Any]:
    """Return all that what is kept depends on."""
    named = {name: getattr(recipe.data, name) for name in ("source", "texts", "pairs")}
    options = {name: value for name, value in asdict(recipe.data).items() if name not in (*named, "also")}
    sources = {**named, **{f"also {name}": name for name in recipe.data.also}}
    made = {
        "pairs": recipe.learn.pairs,
        "num_eval_pairs": recipe.learn.num_eval_pairs,
        "prompts": [recipe.model.query_prompt, recipe.model.document_prompt],
        "seed": recipe.seed,
    }
    return {
        "format": FORMAT,
        "data": options,
        "with_pairs": recipe.represent.enabled or bool({"natural", "reverse"} & set(recipe.learn.pairs)),
        "learn": made if generative else None,
        "sources": {name: _source(given) for name, given in sources.items() if given},
    }


def _source(given: str) -> dict[str, Any]:
    """Return what a source is known by; its name counts, for reports and the held-out set are named after it."""
    path = Path(given)
    if given in DOMAIN_TASKS:
        return {"kind": "task", "given": given, "name": given, "content": pinned_wheels(given)}
    if path.is_file():
        return {"kind": "local", "given": given, "name": path.name, "content": sha256_of(path)}
    if path.is_dir():
        files = [path / "corpus.jsonl", path / "queries.jsonl", *sorted((path / "qrels").glob("*.tsv"))]
        content = {file.relative_to(path).as_posix(): sha256_of(file) for file in files if file.is_file()}
        return {"kind": "local", "given": given, "name": path.resolve().name, "content": content}
    return {"kind": "local" if is_local(given) else "hub", "given": given, "name": given, "content": None}


def _fits(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    rest = [{name: value for name, value in key.items() if name != "sources"} for key in (kept, asked)]
    before, now = kept["sources"], asked["sources"]
    return rest[0] == rest[1] and before.keys() == now.keys() and all(_same(before[name], now[name]) for name in now)


def _same(kept: dict[str, Any], asked: dict[str, Any]) -> bool:
    if kept["kind"] == "local" and not Path(asked["given"]).exists():
        return kept["given"] == asked["given"]
    return {**kept, "given": None} == {**asked, "given": None}
