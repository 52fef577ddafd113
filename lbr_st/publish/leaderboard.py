"""The leaderboard kit: what MTEB asks of a released model, and the steps that are left for a person."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import chdir, redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from lbr_st.bottleneck.loss import CITATION
from lbr_st.data.contamination_report import TASK_ORIGINS, known_overlaps
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import quiet_mteb
from lbr_st.evaluation.scores import RECORDS, TaskScore, read_record
from lbr_st.files import import_extra, notice, refuse_existing
from lbr_st.model.bases import BASES
from lbr_st.model.load import load_stock, model_digest
from lbr_st.model.safe import read_modules
from lbr_st.publish.bundle import prompts_of
from lbr_st.recipe import LearnConfig, Recipe, load_recipe

BENCHMARKS = {"chebi": "ChemTEB(v1.1)", "mondo": "MTEB(Medical, v1)", "pydoc": "MTEB(Code, v1)"}
"""Main source of the training data → MTEB's benchmark of that domain."""

PUBLIC, LOCAL, META, SETTINGS = "results", "results_local", "model_meta.json", "run_settings.jsonl"


@dataclass(frozen=True)
class Submission:
    """What :func:`submission` wrote; ``state`` says it as a Markdown list."""

    folder: Path
    meta_file: Path
    meta: Any  # the ModelMeta as that file gives it
    public: list[str]  # tasks in results/: public ones of MTEB on MTEB's own data
    local: list[str]  # tasks in results_local/: those that the leaderboard does not have
    left_out: list[str]  # a line for each score that was not filed, with the reason
    total: int  # mock tasks that fit the model; 28 for a model of texts
    failures: dict[str, str]  # mock task → why it failed
    state: str


def submission(
    model_folder: str | Path,
    *,
    org: str,
    output: str | Path = "submission",
    results: str | Path | None = None,
    revision: str | None = None,
    name: str | None = None,
    **given: Any,
) -> Submission:
    """Write ``<name>_models.py``, ``results/``, ``mock_run.md`` and ``STEPS.md`` for a released model.

    A second call with the same ``output`` updates these and keeps the results in it, also those of ``mteb run``. For
    the arguments see :func:`lbr_st.commands.submission`. ``given`` are fields of MTEB's ``ModelMeta`` that replace what
    recipe, card and weights tell; None is ignored.

    Raises:
        LBRError: The folder is no release in stock form, ``output`` holds something else, MTEB or the hub refuses a
            value, or a required field is unknown; the message names the option.
    """
    folder, output = Path(model_folder), Path(output)
    full = f"{org}/{name or folder.resolve().name}"
    if any(kind.startswith("lbr_st.") for kind, _ in read_modules(folder)):
        fix = f"Run `lbr-st release {folder} --output released` and give that folder."
        raise LBRError("is in training form, which MTEB cannot load.", where=str(folder), fix=fix)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", full, flags=re.ASCII):
        raise LBRError("cannot be a name on the hub.", where=full, fix="Give another --org or --name.")
    if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        fix = "Give all 40 hexadecimal digits, or leave it out."
        raise LBRError(f"{revision!r} is no commit.", where="revision", fix=fix)
    identifier = re.sub(r"\W+|^(?=\d)", "_", full.partition("/")[2], flags=re.ASCII).lower()  # a Python name
    meta_file, steps = output / f"{identifier}_models.py", output / "STEPS.md"
    if not (meta_file.is_file() or steps.is_file()):
        refuse_existing(output)
    given = {field: value for field, value in given.items() if value is not None}
    recipe = load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    sources = training_sources(recipe)
    model = load_stock(str(folder), device="cpu")
    digest = model_digest(model)
    written = model_meta(model, folder, recipe, {**given, "name": full, "revision": revision or digest})

    output.mkdir(parents=True, exist_ok=True)
    meta_file.write_text(_source(written, identifier, sources, published=bool(revision)), encoding="utf-8")
    meta = runpy.run_path(str(meta_file))[identifier]  # what MTEB will read, not what was meant
    public, local, left_out = _file_results(results, output, meta, digest)
    notice("Running MTEB's mock tasks on the model, loaded through the file; minutes on a CPU …")
    total, failures, report = mock_run(meta, folder)
    (output / "mock_run.md").write_text(report, encoding="utf-8")
    digest_only = "" if revision else " (a digest: the model is not on the hub yet)"
    filed = [f"{len(tasks)} ({', '.join(tasks)})" if tasks else "0" for tasks in (public, local)]
    state = [
        f"- `{meta_file.name}`: the `ModelMeta` of {full} at revision {meta.revision}{digest_only}.",
        f"- `mock_run.md`: {total - len(failures)} of {total} mock tasks passed. MTEB loaded the model by that file.",
        *(f"  - {task} failed: {' '.join(why.split())}" for task, why in failures.items()),
        f"- `{PUBLIC}/`, scores for the leaderboard: {filed[0]}.",
        f"- `{LOCAL}/`, scores on data that MTEB does not have: {filed[1]}.",
        f"- Scores that were left out: {len(left_out)}.",
        *(f"  - {line}" for line in left_out),
    ]
    made = Submission(output, meta_file, meta, public, local, left_out, total, failures, "\n".join(state))
    steps.write_text(_steps(made, folder, given, sources, bool(revision)), encoding="utf-8")
    return made


def model_meta(model: Any, folder: Path, recipe: Recipe | None, given: Mapping[str, Any]) -> Any:
    """Return MTEB's ``ModelMeta`` of a release: what MTEB reads from it, our facts, and ``given`` fields as they are.

    Raises:
        LBRError: A field is neither in the folder nor given, or MTEB does not accept it; the message names the option.
    """
    from huggingface_hub import ModelCard
    from pydantic import ValidationError
    from transformers import PreTrainedModel

    kind = import_extra("mteb.models").ModelMeta
    header = folder / "README.md"
    card = ModelCard.load(header, ignore_metadata_errors=True).data.to_dict() if header.is_file() else {}
    weights = {id(weight): weight for weight in model.parameters()}.values()
    decoder: Any = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    table = decoder.get_input_embeddings().weight
    dtype = str(table.dtype).removeprefix("torch.")
    prompts = prompts_of(model)
    base = recipe.model.base if recipe else str(card.get("base_model"))
    licence = card.get("license_link") if card.get("license") == "other" else card.get("license")
    learn = recipe.learn if recipe else LearnConfig()
    is_lbr = learn.enabled and learn.max_steps != 0 and learn.bottleneck != "none"
    with quiet_mteb(), warnings.catch_warnings(action="ignore"):
        read_by_mteb = dict(kind.from_sentence_transformer_model(model))
    values = {
        **read_by_mteb,
        "loader_kwargs": {"model_prompts": prompts} if any(prompts.values()) else {},
        "use_instructions": any(prompts.values()),
        "n_parameters": sum(weight.numel() for weight in weights),
        "n_embedding_parameters": table.numel(),  # MTEB multiplies the vocabulary by the embedding's size
        "memory_usage_mb": round(sum(weight.nbytes for weight in weights) / 1024**2),
        "output_dtypes": None if dtype == "float32" else import_extra("mteb.types").OutputDType(dtype),
        "framework": ["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
        "release_date": datetime.now(UTC).date().isoformat(),
        "reference": f"https://huggingface.co/{given['name']}",
        "open_weights": True,
        "citation": CITATION if is_lbr else None,
        "languages": import_extra("mteb.languages.iso_mappings")._hf_langs_to_iso_lang_scripts(card.get("language")),
        "license": licence or (BASES[base].licence.lower() if base in BASES else None),
        "adapted_from": BASES[base].hub_id if base in BASES else base if _is_hub_id(base) else None,
        "training_datasets": tasks_of(training_sources(recipe)) if recipe else None,
        **given,
    }
    for field in ("languages", "license", "adapted_from", "training_datasets"):
        if values[field] in (None, []):
            what = f"neither recipe.yaml nor README.md tells {field}."
            raise LBRError(what, where=str(folder), fix=f"Give {_flag(field)}. lbr-st submission --help says how.")
    for task in set(values["training_datasets"]) - mteb_tasks().keys():
        raise LBRError(f"MTEB has no task {task!r}.", where="training_datasets", fix="Check the case of its name.")
    if values["adapted_from"] == values["name"]:  # MTEB would follow it to the base's training data for ever
        raise LBRError("a model cannot be adapted from itself.", fix="Give the base's hub id with --adapted-from.")
    try:
        return kind(**values)
    except ValidationError as error:
        field, problem = str(error.errors()[0]["loc"][0]), error.errors()[0]["msg"]
        what = f"MTEB does not accept {field} {values[field]!r}: {problem}."
        raise LBRError(what, fix=f"Give another {_flag(field)}.") from error


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def training_sources(recipe: Recipe | None) -> list[str]:
    """Return the names of what a recipe trained on, paths cut down to their last part."""
    if recipe is None:
        return []
    data = recipe.data
    named = filter(None, (data.source, *data.also, *data.archives, data.texts, data.pairs))
    return list(dict.fromkeys(s if _is_hub_id(s) else re.sub("^local:|@sha256:.*", "", Path(s).name) for s in named))


def tasks_of(sources: Iterable[str]) -> set[str]:
    """Return the MTEB tasks whose own data these sources are, by hub id or by name (``BeIR/scifact``, ``scifact``)."""
    form = r"\.(jsonl?|csv|parquet)$|[\W_]"
    named = {source: re.sub(form, "", Path(source).name.casefold()) for source in sources}
    return {
        task
        for task, metadata in mteb_tasks().items()
        for source, name in named.items()
        if metadata.dataset.get("path") == source or re.sub(form, "", task.casefold()) == name
    }


def mteb_tasks() -> dict[str, Any]:
    """Return the metadata of every task that MTEB has, by name."""
    # mteb.get_tasks would make an instance of each of 2,000 tasks, and each seeds torch, which takes seconds.
    return {task.metadata.name: task.metadata for task in import_extra("mteb.get_tasks").TASK_LIST}


def _is_hub_id(source: str) -> bool:
    """Whether a source is ``org/name`` and no file or folder."""
    is_file = source.endswith((".jsonl", ".json", ".csv", ".parquet")) or Path(source).exists()
    return not is_file and bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", source))


def _source(meta: Any, identifier: str, sources: list[str], *, published: bool) -> str:
    """Return the Python file with a ``ModelMeta``, as MTEB keeps one in ``mteb/models/model_implementations``."""
    types = [] if meta.output_dtypes is None else ["from mteb.types import OutputDType"]
    notes = [] if published else ["# revision: lbr-st's digest of the weights, until the hub has a commit"]
    if sources:
        which = "the data of these tasks" if meta.training_datasets else "none of it the data of an MTEB task"
        notes.append(f"# training_datasets: trained on {', '.join(map(ascii, sources))}: {which}")
    imports = """from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper"""
    return "\n".join([imports, *types, "", *notes, f"{identifier} = {meta.to_python()}\n"])


def mock_run(meta: Any, model_folder: str | Path) -> tuple[int, dict[str, str], str]:
    """Load a model with MTEB's own loader and run MTEB's mock tasks on it; nothing is downloaded.

    Returns:
        How many tasks fit the model, each failed one with the reason, and MTEB's report in Markdown.
    """
    folder, done = Path(model_folder).resolve(), import_extra("mteb.results.task_result").TaskResult
    # Sentence Transformers takes a folder named org/model for the hub's repository, so the ModelMeta is used unchanged.
    silent = warnings.catch_warnings(action="ignore"), redirect_stderr(StringIO())  # 28 tasks with a bar or two each
    with tempfile.TemporaryDirectory() as place, chdir(place), quiet_mteb(), silent[0], silent[1]:
        Path(meta.name).parent.mkdir()
        Path(meta.name).symlink_to(folder, target_is_directory=True)
        found = import_extra("mteb").mock_run(meta.load_model())
    fitting = {task: status for task, status in found.items() if status is not None}
    failures = {task: str(status.exception) for task, status in fitting.items() if not isinstance(status, done)}
    return len(fitting), failures, f"{found.to_markdown()}\n"


def _file_results(results: str | Path | None, output: Path, meta: Any, digest: str) -> tuple[list[str], ...]:
    """Copy the latest scores of these very weights into MTEB's layout; return public tasks, local ones and the rest.

    Results that an earlier call filed under the digest move to the revision that is known now.
    """
    folders = [output / kind / meta.model_name_as_path() / meta.revision for kind in (PUBLIC, LOCAL)]
    for folder in folders:
        earlier = folder.with_name(digest)
        if earlier.is_dir() and not folder.exists():
            earlier.rename(folder)
    source = Path(results or "")
    records = [] if results is None else sorted((source / RECORDS).rglob("*.json"))
    if not records and results is not None:
        raise LBRError("there are no results here.", where=str(source), fix="Run `lbr-st evaluate MODEL` first.")
    found: dict[str, tuple[TaskScore, Path]] = {}
    left_out = []
    for record in records:
        path = source / PUBLIC / record.relative_to(source / RECORDS)
        if (score := read_record(record)) is None:
            left_out.append(f"{path.stem}: cannot be read")
        elif score.digest != digest:
            left_out.append(f"{path.stem} of {score.name}: other weights or settings")
        elif score.experiment or not score.date:
            why = "MTEB's loader runs it in float32 and uncut" if score.experiment else "the run did not end"
            left_out.append(f"{path.stem} of {score.name}: {why}")
        elif path.stem not in found or found[path.stem][0].date < score.date:
            found[path.stem] = (score, path)
    for task, (score, path) in sorted(found.items()):
        known: Any = mteb_tasks().get(task)
        public = known and known.dataset["revision"] == score.dataset_revision and known.is_public is not False
        target = folders[0 if public else 1] / path.name
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        settings = path.with_name(SETTINGS).read_text(encoding="utf-8").splitlines(keepends=True)
        with target.with_name(SETTINGS).open("a", encoding="utf-8") as file:
            file.writelines(line for line in settings if json.loads(line)["task"] == task)
    tasks = [sorted(path.stem for path in folder.glob("*.json") if path.name != META) for folder in folders]
    for folder in (folder for folder, listed in zip(folders, tasks, strict=True) if listed):
        (folder / META).write_text(json.dumps(meta.to_dict(), default=str, indent=4), encoding="utf-8")
    return *tasks, left_out


def _steps(made: Submission, model_folder: Path, given: Mapping[str, Any], sources: list[str], published: bool) -> str:
    meta, (org, _, name) = made.meta, made.meta.name.partition("/")
    options = [f"{_flag(k)}={v if isinstance(v, str) else '[' + ','.join(v) + ']'}" for k, v in given.items()]
    again = ["lbr-st", "submission", str(model_folder), "--org", org, "--name", name, "--output", str(made.folder)]
    trained = ", ".join(sorted(meta.training_datasets))
    asked = [key for key in ("public_training_code", "public_training_data", "contacts") if not getattr(meta, key)]
    facts = {
        "full": meta.name,
        "branch": f"add-{org}-{name}",
        "state": made.state,
        "kit": shlex.quote(str(made.folder.resolve())),
        "model": shlex.quote(str(model_folder)),
        "file": made.meta_file.name,
        "path": shlex.quote(str(made.meta_file.resolve())),
        "again": shlex.join([*again, "--revision", "PASTE_THE_COMMIT", *options]),
        "benchmark": next((f'"{BENCHMARKS[source]}"' for source in sources if source in BENCHMARKS), "BENCHMARK"),
        "warning": "\n\n**Not all mock tasks passed: find out why before you open it.**" if made.failures else "",
        "trained": f"names {trained}: MTEB will not count these as zero-shot" if trained else "is empty",
        "asked": "".join(f"\n- `{key}` is None. Give `{_flag(key)}=...` once there is one." for key in asked),
        "overlaps": "\n".join(f"- {line}" for line in known_overlaps(sources, sorted({*TASK_ORIGINS, *made.public}))),
    }
    return _STEPS.format(publish="" if published else _PUBLISH.format(**facts), **facts)


_PUBLISH = """
## Publish the model

MTEB lists models that others can download. `{full}` must be free, and public. The third line prints the commit. With
that instead of `PASTE_THE_COMMIT`, the fourth replaces lbr-st's digest in this folder, and the results move along.

```
hf auth login
hf upload {full} {model} . --commit-message "Add the model"
python -c "from huggingface_hub import HfApi; print(HfApi().model_info('{full}').sha)"
{again}
```
"""

_STEPS = """# {full}: what is left for a person

Ready in this folder:

{state}
{publish}
## Pull request with the file

`mteb mock-run` loads the model from the hub, and its report must say what `mock_run.md` here says. Say in the pull
request, in your own words, what the model is and where it comes from. Say also that no score can be compared with the
paper's, which reports other weights. Fork <https://github.com/embeddings-benchmark/mteb>, then in a clone of your fork:

```
pip install -e .
cp {path} mteb/models/model_implementations/
mteb mock-run -m {full}
git checkout -b {branch}
git add mteb/models/model_implementations/{file} mteb_mock_run_results.md
git commit -m "Add {full}"
git push -u origin HEAD
```{warning}

## Run the benchmark and submit the results

Use the MTEB of that clone, which knows the model. It downloads the tasks and skips results that are here already.
Results appear on the leaderboard about a day after both pull requests are merged.

```
mteb run -m {full} -b {benchmark} --output-folder {kit}
pip install "mteb[github]"
gh auth login
mteb submit-results --output-folder {kit} -m {full} --create-pr
```

## Check what the file says

- `training_datasets` {trained}. Tasks made from the same data under other names are not in it.{asked}

These overlaps by origin belong on the model card:

{overlaps}
"""
