"""The leaderboard kit: what MTEB asks of a released model, and the steps that are left for a person."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
import shlex
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from lbr_st.bottleneck.loss import CITATION
from lbr_st.data.contamination_report import TASK_ORIGINS, known_overlaps
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import import_extra, quiet_mteb
from lbr_st.evaluation.scores import RECORDS, TaskScore, read_record
from lbr_st.evaluation.systems import model_digest
from lbr_st.files import notice, refuse_existing
from lbr_st.model.bases import BASES
from lbr_st.model.load import load_stock
from lbr_st.model.safe import read_modules
from lbr_st.recipe import Recipe, load_recipe

BENCHMARKS = {"chebi": "ChemTEB(v1.1)", "mondo": "MTEB(Medical, v1)", "pydoc": "MTEB(Code, v1)"}


"""Main source of the training data → MTEB's benchmark of that domain."""


PUBLIC, LOCAL = "results", "results_local"


META, SETTINGS = "model_meta.json", "run_settings.jsonl"


_TO_GIVE = {
    "languages": "[eng-Latn]",
    "license": "apache-2.0 (or what it is)",
    "adapted_from": "ORG/MODEL",
    "training_datasets": "[] (or MTEB's task names)",
}


"""Fields that must be known → what to give for one that neither the recipe nor the card tells."""


@dataclass(frozen=True)
class Submission:
    """What :func:`submission` wrote.

    Args:
        folder: Where.
        meta_file: The file with the ``ModelMeta``.
        meta: The ``ModelMeta`` as that file gives it.
        digest: lbr-st's digest of the model, the revision until the hub has a commit.
        public: Tasks in ``results/``: public ones of MTEB on MTEB's own data, for the leaderboard.
        local: Tasks in ``results_local/``: those that the leaderboard does not have.
        left_out: A line for each score that was not filed, with the reason.
        total: Mock tasks that fit the model; 28 for a model of texts.
        failures: Mock task → why it failed or was not run.
        seconds: Wall time of the mock run, loading included.
    """

    folder: Path
    meta_file: Path
    meta: Any
    digest: str
    public: list[str]
    local: list[str]
    left_out: list[str]
    total: int
    failures: dict[str, str]
    seconds: float

    @property
    def published(self) -> bool:
        """Whether the revision is a commit on the hub."""
        return bool(self.meta.revision != self.digest)

    @property
    def state(self) -> str:
        """What is ready and what failed, as a Markdown list."""
        failed = "".join(f"\n  - {task} failed: {' '.join(why.split())}" for task, why in self.failures.items())
        digest = "" if self.published else " (a digest: the model is not on the hub yet)"
        filed = [f"{len(tasks)} ({', '.join(tasks)})" if tasks else "0" for tasks in (self.public, self.local)]
        lines = [
            f"- `{self.meta_file.name}`: the `ModelMeta` of {self.meta.name} at revision {self.meta.revision}{digest}.",
            f"- `mock_run.md`: {self.total - len(self.failures)} of {self.total} mock tasks passed on the model, which "
            f"MTEB loaded through that file, in {self.seconds:.0f} s.{failed}",
            f"- `results/`, scores for the leaderboard: {filed[0]}.",
            f"- `results_local/`, scores on data that MTEB does not have: {filed[1]}.",
            f"- Scores that were left out: {len(self.left_out)}.",
            *(f"  - {line}" for line in self.left_out),
        ]
        return "\n".join(lines)


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

    A second call with the same ``output`` brings these up to date and keeps the results in it, also those that
    ``mteb run`` wrote there.

    Args:
        model_folder: A release in stock form.
        org: The organisation or user on the hub that the model will belong to.
        output: The folder to write.
        results: The folder that ``lbr-st evaluate`` wrote; None for none.
        revision: The commit of the model on the hub, 40 hexadecimal digits; None before it is there.
        name: The model's name on the hub; None for the folder's.
        **given: Fields of MTEB's ``ModelMeta`` to take instead of what recipe, card and weights tell, such as
            ``license``, ``languages``, ``adapted_from``, ``training_datasets``, ``release_date`` (``YYYY-MM-DD``, today
            by default), ``public_training_code``, ``public_training_data``, ``reference`` or ``contacts``; None is
            ignored.

    Raises:
        LBRError: The folder is no release in stock form, ``output`` holds something else, a value is not accepted by
            MTEB or the hub, or a field can be found nowhere; the message names the option to give.
    """
    folder, output = Path(model_folder), Path(output)
    if any(kind.startswith("lbr_st.") for kind, _ in read_modules(folder)):
        raise LBRError(
            "is in training form, which MTEB cannot load.",
            where=str(folder),
            fix=f"Run `lbr-st release {folder} --output released` and give that folder.",
        )
    full = _hub_name(f"{org}/{name or folder.resolve().name}")
    if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise LBRError(
            f"{revision!r} is no commit.", where="revision", fix="Give all 40 hexadecimal digits, or leave it out."
        )
    meta_file, steps = output / f"{_identifier(full)}_models.py", output / "STEPS.md"
    if not (meta_file.is_file() or steps.is_file()):
        refuse_existing(output)
    given = {field: value for field, value in given.items() if value is not None}
    recipe = load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    model = load_stock(str(folder), device="cpu")
    digest = model_digest(model)
    written = model_meta(model, folder, recipe, {**given, "name": full, "revision": revision or digest})

    output.mkdir(parents=True, exist_ok=True)
    meta_file.write_text(_source(written, training_sources(recipe), published=revision is not None), encoding="utf-8")
    meta = load_meta(meta_file)
    public, local, left_out = _file_results(Path(results) if results is not None else None, output, meta, digest)
    notice("Running MTEB's mock tasks on the model, loaded through the file; minutes on a CPU …")
    start = time.monotonic()
    total, failures, report = mock_run(meta, folder)
    (output / "mock_run.md").write_text(report, encoding="utf-8")
    seconds = time.monotonic() - start
    made = Submission(output, meta_file, meta, digest, public, local, left_out, total, failures, seconds)
    steps.write_text(_steps(made, folder, given, training_sources(recipe)), encoding="utf-8")
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    with quiet_mteb(), warnings.catch_warnings(), redirect_stderr(StringIO()):  # 28 tasks with a bar or two each
        warnings.simplefilter("ignore")
        yield


# --- the ModelMeta ----------------------------------------------------------------------------------------------------


def model_meta(model: Any, folder: Path, recipe: Recipe | None, given: Mapping[str, Any]) -> Any:
    """Return MTEB's ``ModelMeta`` for a model: what MTEB reads from it, our facts, and what a person says instead.

    Args:
        model: The SentenceTransformer loaded from ``folder``.
        folder: A release in stock form.
        recipe: The run that made it; None if unknown.
        given: Fields to take as they are; ``name`` (``org/model``) and ``revision`` among them.

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
    prompts = {key: prompt for key, prompt in model.prompts.items() if prompt is not None}
    with _quiet():
        read_by_mteb = dict(kind.from_sentence_transformer_model(model))
    values = {
        **read_by_mteb,
        "loader_kwargs": {"model_prompts": prompts} if any(prompts.values()) else {},
        "use_instructions": any(prompts.values()),
        "n_parameters": sum(weight.numel() for weight in weights),
        "n_embedding_parameters": table.numel(),  # MTEB multiplies the vocabulary by the embedding's size
        "memory_usage_mb": round(sum(weight.numel() * weight.element_size() for weight in weights) / 1024**2),
        "output_dtypes": None if dtype == "float32" else import_extra("mteb.types").OutputDType(dtype),
        "framework": ["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
        "release_date": datetime.now(UTC).date().isoformat(),
        "reference": f"https://huggingface.co/{given['name']}",
        "open_weights": True,
        "citation": CITATION if recipe is None or _is_lbr(recipe) else None,
        "languages": import_extra("mteb.languages.iso_mappings")._hf_langs_to_iso_lang_scripts(card.get("language")),
        "license": _licence(card, recipe),
        "adapted_from": _base(card, recipe),
        "training_datasets": None if recipe is None else tasks_of(training_sources(recipe)),
        **given,
    }
    for field, example in _TO_GIVE.items():
        if values[field] is None or (field == "languages" and not values[field]):
            what = f"neither recipe.yaml nor README.md tells {field}."
            raise LBRError(what, where=str(folder), fix=f"Give --{field}={example}.")
    for task in values["training_datasets"]:
        if task not in mteb_tasks():
            raise LBRError(f"MTEB has no task {task!r}.", where="training_datasets", fix="Mind the case of its names.")
    if values["adapted_from"] == values["name"]:  # MTEB would follow it to the base's training data for ever
        raise LBRError(
            f"{values['name']} cannot be adapted from itself.", fix="Give the base's hub id with --adapted_from."
        )
    try:
        return kind(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        what = f"MTEB does not accept {field} {values[field]!r}: {problem['msg']}."
        raise LBRError(what, fix=f"Give another --{field}.") from error


def training_sources(recipe: Recipe | None) -> list[str]:
    """Return the names of what a recipe trained on, paths cut down to their last part."""
    if recipe is None:
        return []
    named = [source for source in (recipe.data.source, recipe.data.texts, recipe.data.pairs) if source]
    return list(dict.fromkeys(source if _is_hub_id(source) else Path(source).name for source in named))


def tasks_of(sources: Iterable[str]) -> set[str]:
    """Return the MTEB tasks whose own data these sources are, by hub id or by name (``BeIR/scifact``, ``scifact``)."""
    found = set()
    for source in sources:
        word = _plain(re.sub(r"\.(jsonl?|csv|parquet)$", "", Path(source).name))
        found |= {
            name for name, task in mteb_tasks().items() if task.dataset.get("path") == source or _plain(name) == word
        }
    return found


def mteb_tasks() -> dict[str, Any]:
    """Return the metadata of every task that MTEB has, by name."""
    # mteb.get_tasks would make an instance of each of 2,000 tasks, and each seeds torch, which takes seconds.
    return {task.metadata.name: task.metadata for task in import_extra("mteb.get_tasks").TASK_LIST}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _is_hub_id(source: str) -> bool:
    """Whether a source is ``org/name`` and no file or folder."""
    is_file = source.endswith((".jsonl", ".json", ".csv", ".parquet")) or Path(source).exists()
    return not is_file and bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", source))


def _licence(card: dict[str, Any], recipe: Recipe | None) -> str | None:
    licence = card.get("license_link") if card.get("license") == "other" else card.get("license")
    if not licence and recipe is not None and recipe.model.base in BASES:
        licence = BASES[recipe.model.base].licence.lower()
    return licence


def _base(card: dict[str, Any], recipe: Recipe | None) -> str | None:
    base = recipe.model.base if recipe is not None else str(card.get("base_model"))
    return BASES[base].hub_id if base in BASES else base if _is_hub_id(base) else None


def _is_lbr(recipe: Recipe) -> bool:
    return recipe.learn.enabled and recipe.learn.max_steps > 0 and recipe.learn.bottleneck != "none"


def _hub_name(full: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(full)
    except HFValidationError as error:
        raise LBRError(
            f"cannot be a name on the hub: {error}", where=full, fix="Give another --org or --name."
        ) from None
    return full


def _identifier(full: str) -> str:
    """Return the name of ``org/model`` as a Python name: ``org/lbr-chem`` becomes ``lbr_chem``."""
    word = re.sub(r"\W+", "_", full.partition("/")[2], flags=re.ASCII).strip("_").lower()
    return word if word.isidentifier() and not keyword.iskeyword(word) else f"model_{word}"


def _source(meta: Any, sources: list[str], *, published: bool) -> str:
    """Return the Python file with a ``ModelMeta``, as MTEB keeps one in ``mteb/models/model_implementations``."""
    comments = [] if published else ["# revision: lbr-st's digest of the weights, until the hub has a commit"]
    if sources:
        which = "the data of these tasks" if meta.training_datasets else "none of it the data of an MTEB task"
        comments.append(f"# training_datasets: trained on {', '.join(map(ascii, sources))}: {which}")
    return "\n".join(
        [
            "from mteb.models.model_meta import ModelMeta, ScoringFunction",
            "from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper",
            *([] if meta.output_dtypes is None else ["from mteb.types import OutputDType"]),
            "",
            *comments,
            f"{_identifier(meta.name)} = {meta.to_python()}\n",
        ]
    )


def load_meta(path: Path) -> Any:
    """Run the file that :func:`submission` wrote and return the ``ModelMeta`` in it."""
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kind = import_extra("mteb.models").ModelMeta
    return next(value for value in vars(module).values() if isinstance(value, kind))


# --- the mock run -----------------------------------------------------------------------------------------------------


def mock_run(meta: Any, model_folder: str | Path) -> tuple[int, dict[str, str], str]:
    """Load a model with MTEB's own loader and run MTEB's mock tasks on it; nothing is downloaded.

    Sentence Transformers takes a folder named ``org/model`` for the hub's repository, so that the ``ModelMeta`` is used
    unchanged: the loader runs in a folder in which that name leads to the model.

    Returns:
        How many tasks fit the model, each failed one with the reason, and MTEB's report in Markdown.
    """
    folder = Path(model_folder).resolve()
    with tempfile.TemporaryDirectory() as place, chdir(place), _quiet():
        Path(meta.name).parent.mkdir()
        Path(meta.name).symlink_to(folder, target_is_directory=True)
        found = import_extra("mteb").mock_run(meta.load_model())
    done = import_extra("mteb.results.task_result").TaskResult
    fitting = {task: status for task, status in found.items() if status is not None}
    failures = {task: str(status.exception) for task, status in fitting.items() if not isinstance(status, done)}
    return len(fitting), failures, f"{found.to_markdown()}\n"


# --- the results ------------------------------------------------------------------------------------------------------


def _file_results(source: Path | None, output: Path, meta: Any, digest: str) -> tuple[list[str], list[str], list[str]]:
    """Copy the scores of these very weights into MTEB's layout; return the public and the local tasks and the rest.

    Results that an earlier call filed under the digest move to the revision that is known now.
    """
    folders = {kind: output / kind / meta.model_name_as_path() / meta.revision for kind in (PUBLIC, LOCAL)}
    for folder in folders.values():
        earlier = folder.with_name(digest)
        if earlier.is_dir() and not folder.exists():
            earlier.rename(folder)
    found, left_out = _own(source, digest) if source is not None else ({}, [])
    for task, (score, path) in sorted(found.items()):
        task_of_mteb = mteb_tasks().get(task)
        same_data = task_of_mteb is not None and task_of_mteb.dataset["revision"] == score.dataset_revision
        public = same_data and getattr(task_of_mteb, "is_public", None) is not False
        target = folders[PUBLIC if public else LOCAL] / path.name
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        settings = path.with_name(SETTINGS).read_text(encoding="utf-8").splitlines(keepends=True)
        with target.with_name(SETTINGS).open("a", encoding="utf-8") as file:
            file.writelines(line for line in settings if json.loads(line)["task"] == task)
    tasks = []
    for folder in folders.values():
        tasks.append(sorted(path.stem for path in folder.glob("*.json") if path.name != META))
        if tasks[-1]:
            (folder / META).write_text(json.dumps(meta.to_dict(), default=str, indent=4), encoding="utf-8")
    return tasks[0], tasks[1], left_out


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
        elif score.digest != digest:
            left_out.append(f"{path.stem} of {score.name}: other weights or settings")
        elif score.experiment:
            left_out.append(f"{path.stem} of {score.name}: not run as MTEB's loader runs it")
        elif not score.date:
            left_out.append(f"{path.stem} of {score.name}: the run did not end")
        elif path.stem not in found or found[path.stem][0].date < score.date:
            found[path.stem] = (score, path)
    return found, left_out


# --- what is left for a person ----------------------------------------------------------------------------------------


def _steps(made: Submission, model_folder: Path, given: Mapping[str, Any], sources: list[str]) -> str:
    """Return the text of ``STEPS.md``, with every name filled in."""
    full, file = made.meta.name, made.meta_file
    org, _, name = full.partition("/")
    options = [f"--{k}={v}" if isinstance(v, str) else f"--{k}=[{','.join(v)}]" for k, v in given.items()]
    again = ["lbr-st", "submission", str(model_folder), "--org", org, "--name", name, "--output", str(made.folder)]
    kit, commit = shlex.quote(str(made.folder.resolve())), "PASTE_THE_COMMIT"
    benchmark = next((f'"{BENCHMARKS[source]}"' for source in sources if source in BENCHMARKS), "BENCHMARK")
    trained = ", ".join(sorted(made.meta.training_datasets))
    asked = [key for key in ("public_training_code", "public_training_data", "contacts") if not getattr(made.meta, key)]
    publish = f"""
## Publish the model

MTEB lists models that others can download. `{full}` must be free, and public.

```
hf auth login
hf upload {full} {shlex.quote(str(model_folder))} . --commit-message "Add the model"
python -c "from huggingface_hub import HfApi; print(HfApi().model_info('{full}').sha)"
```

The last line prints the commit, 40 hexadecimal digits.

## Name that commit

The revision in the file is lbr-st's digest of the weights, which the hub does not know. Write the kit again with the
commit instead of `{commit}`; results move along:

```
{shlex.join([*again, "--revision", commit, *options])}
```
"""
    text = f"""# {full}: what is left for a person

Ready in this folder:

{made.state}
{"" if made.published else publish}
## Pull request with the file

Fork <https://github.com/embeddings-benchmark/mteb>, then in a clone of your fork:

```
pip install -e .
cp {shlex.quote(str(file.resolve()))} mteb/models/model_implementations/
mteb mock-run -m {full}
git checkout -b add-{org}-{name}
git add mteb/models/model_implementations/{file.name} mteb_mock_run_results.md
git commit -m "Add {full}"
git push -u origin HEAD
```

`mteb mock-run` loads the model from the hub and writes `mteb_mock_run_results.md`, which must say what `mock_run.md`
here says. Say in the pull request, in your own words, what the model is and where it comes from, and that no score can
be compared with the paper's, which reports other weights.{_WARNING if made.failures else ""}

## Run the benchmark

With the MTEB of that clone, which knows the model. It downloads the tasks and skips results that are here already.
`mteb available-benchmarks` lists the benchmarks.

```
mteb run -m {full} -b {benchmark} --output-folder {kit}
```

## Submit the results

```
pip install "mteb[github]"
gh auth login
mteb submit-results --output-folder {kit} -m {full} --create-pr
```

Without `--create-pr` it commits the results to a branch in `{made.folder}/remote`, to be pushed by hand. They appear on
the leaderboard about a day after both pull requests are merged.

## Check what the file says

- `training_datasets` {f"names {trained}: MTEB will not count these as zero-shot." if trained else _NO_TASKS}
"""
    text += "".join(f"- `{key}` is None. Give `--{key}=...` once there is one.\n" for key in asked)
    text += "\nOverlaps by origin, which belong on the model card if they are not there yet:\n\n"
    text += "".join(f"- {line}\n" for line in known_overlaps(sources, sorted({*TASK_ORIGINS, *made.public})))
    number = count(1)
    return re.sub(r"^## ", lambda _: f"## {next(number)}. ", text, flags=re.MULTILINE)


_WARNING = "\n\n**Not all mock tasks passed: find out why before you open it.**"


_NO_TASKS = "is empty: no training source is the data of an MTEB task. Overlaps under other names are possible."
