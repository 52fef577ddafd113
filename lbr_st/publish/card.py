"""The model card of a release, the facts of a run that it tells, and the record of what a model was made of."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCardData
from sentence_transformers import SentenceTransformer

import lbr_st
from lbr_st.bottleneck.loss import CITATION
from lbr_st.compute import world_size
from lbr_st.data.contamination_report import known_overlaps
from lbr_st.data.documents import KINDS
from lbr_st.data.lines import kind_of
from lbr_st.data.sources import is_local
from lbr_st.domains.tasks import DOMAIN_TASKS
from lbr_st.errors import LBRError
from lbr_st.evaluation.scores import (
    TaskScore,
    find_system,
    format_table,
    format_tasks,
    latest,
    plain,
    read_records,
    score_from_dict,
    write_results,
)
from lbr_st.evaluation.suites import SUITES
from lbr_st.files import LOCAL, installed_versions, without_place, write_whole
from lbr_st.model.bases import BASES, licence_of
from lbr_st.recipe import DataConfig, Recipe, load_recipe, recipe_without_places, save_recipe
from lbr_st.training.data import RunData
from lbr_st.training.model import PROVENANCE, RECIPE
from lbr_st.training.teacher import teacher_licence, teacher_of

CARD_FACTS, RESULTS = "card.json", "results.json"
"""In a run's work folder: :meth:`CardInfo.facts`, for a bundle that is made later, and the scores."""

PACKAGES = ("lbr-st", "sentence-transformers", "transformers", "torch", "peft", "accelerate", "datasets", "tokenizers")

Row = tuple[str, TaskScore]


@dataclass
class CardInfo:
    """What a card says beyond what Sentence Transformers can see in the model; None where it is unknown."""

    name: str
    recipe: Recipe | None = None  # the run that made it; without places of this machine
    base: str | None = None  # where the base is, or its name; None for what the recipe says
    results: Path | None = None  # a run's results.json, this model last, or the folder of lbr-st evaluate
    licence: str | None = None  # of the weights, as the hub spells it
    data: Sequence[str] = ()  # training data, one line each with its licence
    contamination: Sequence[str] = ()  # what the check against the evaluation data found, a paragraph each
    overlaps: Sequence[str] = ()  # what evaluation and training data share by their origin, a sentence each
    language: str | None = None  # of the training text
    examples: Sequence[str] = ()  # a query and a few texts for the usage example
    provenance: dict[str, Any] | None = None  # see provenance(); kept next to the card
    note: str | None = None  # a paragraph on how this copy of the model came about

    def __post_init__(self) -> None:
        if self.recipe is not None:
            self.recipe = recipe_without_places(self.recipe, [*BASES, *DOMAIN_TASKS])
            self.licence = self.licence or self.recipe.release.license

    def facts(self) -> dict[str, Any]:
        """Return the fields that neither the recipe nor the scores tell."""
        known = ("licence", "language", "data", "contamination", "overlaps", "examples")
        return {name: getattr(self, name) for name in known}


def run_card(recipe: Recipe, data: RunData, work: Path, rows: Sequence[Row], name: str) -> CardInfo:
    """Write a run's scores and facts into its work folder, and return what the card of its model says of them."""
    if rows:
        write_results(work / RESULTS, rows)
    source, teacher = recipe.data.source, teacher_of(recipe.represent)
    tasks = [task for suite in SUITES.values() if source in suite.local for task in suite.hub_tasks]
    shown = data.pairs if recipe.release.examples or source in DOMAIN_TASKS else None
    info = CardInfo(
        name,
        recipe=recipe,
        base=recipe.model.base,
        results=work / RESULTS if rows else None,
        data=[*data.licences, *([teacher_licence(teacher)] if teacher else []), *data.notes],
        contamination=[report.to_markdown(samples=False).rstrip() for report in data.contamination],
        overlaps=known_overlaps(map(without_place, named_data(recipe.data)), tasks),
        language="en" if source in DOMAIN_TASKS else None,
        examples=list(shown[0].values())[:2] if shown is not None else [],
        provenance=provenance(recipe, data.sources),
    )
    (work / CARD_FACTS).write_text(json.dumps(info.facts(), indent=1, ensure_ascii=False), encoding="utf-8")
    return info


def info_in(folder: Path, name: str) -> CardInfo:
    """Return what a trained model's folder tells for a card: its recipe and its provenance, where they are known."""
    recipe, made = folder / RECIPE, folder / PROVENANCE
    return CardInfo(
        name,
        recipe=load_recipe(recipe) if recipe.is_file() else None,
        provenance=json.loads(made.read_text(encoding="utf-8")) if made.is_file() else None,
    )


def write_origin(info: CardInfo, folder: Path) -> None:
    """Write ``recipe.yaml`` and ``provenance.json`` into a folder, as far as they are known."""
    if info.recipe is not None:
        save_recipe(info.recipe, folder / RECIPE)
    if info.provenance is not None:
        (folder / PROVENANCE).write_text(json.dumps(info.provenance, indent=1) + "\n", encoding="utf-8")


def is_hub_id(name: str) -> bool:
    """Tell whether a base or a source of a recipe is ``org/name`` on the hub and no file or folder."""
    return not is_local(name) and kind_of(Path(name)) not in KINDS and bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", name))


def named_data(data: DataConfig) -> list[str]:
    """Return everything that a recipe trains on by its name there."""
    return list(dict.fromkeys(filter(None, (data.source, *data.also, *data.archives, data.texts, data.pairs))))


def short(name: str) -> str:
    """Return a base's or a source's name of a recipe as people say it: no path, no digest."""
    return name if is_hub_id(name) else re.sub("^local:|@sha256:.*", "", Path(name).name)


def write_card(stock: SentenceTransformer, folder: Path, info: CardInfo, place: str) -> None:
    """Write ``README.md`` into the folder of a released model, which will have the name ``place``."""
    recipe, rows = info.recipe or Recipe(), read_results(info.results) if info.results else []
    base = info.base or recipe.model.base
    hub_id = BASES[base].hub_id if base in BASES else base if is_hub_id(base) else None
    origin = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else plain(short(base))
    scored = [score for _, score in rows[-1:] if score.parts]
    found = [EvalResult("information-retrieval", "unknown", s.task, "ndcg_at_10", s.ndcg_at_10) for s in scored]
    head = ModelCardData(
        base_model=hub_id,
        datasets=[name for name in named_data(recipe.data) if info.recipe and is_hub_id(name)] or None,
        language=info.language,
        license=info.licence,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "lbr", "lbr-st"],
        model_name=info.name,
        eval_results=found or None,
    )
    size = f"{stock.max_seq_length} tokens to {stock.get_embedding_dimension()} numbers"
    what = f"An embedding model for retrieval in its domain, made from {origin}. It maps a text of up to {size}."
    licences = [
        f"This model: {plain(info.licence)}." if info.licence else _NO_LICENCE,
        f"Its base, {origin}: {licence_of(base) or 'licence unknown'}.",
        *info.data,
    ]
    checks = [*info.contamination, _bullets(info.overlaps)]
    settings = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True).rstrip()
    ran = f"`lbr-st train --config recipe.yaml` with this file:\n\n```yaml\n{settings}\n```"
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {plain(info.name)}\n\n{what}",
        results_section(rows) if rows else "",
        _section("Use", "```bash\npip install sentence-transformers\n```", _usage(stock, info.examples, place)),
        _section("How it was trained", _how_trained(recipe), info.note or ""),
        _section("Data and licences", _bullets(licences)),
        _section("Training data against evaluation data", *checks, folded="What was checked and found"),
        _section("Recipe", ran if info.recipe else "", folded="recipe.yaml"),
        _section("Limits", _LIMITS),
        _section("Citation", f"The method:\n\n```bibtex\n{CITATION}\n```"),
    ]
    (folder / "README.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _usage(stock: SentenceTransformer, examples: Sequence[str], place: str) -> str:
    """Return Python that runs where the model's folder is, with what it prints."""
    query, *documents = examples or _EXAMPLES
    found = stock.similarity(stock.encode_query([query]), stock.encode_document(documents)).numpy().round(2)
    model, asked, *given = (json.dumps(text, ensure_ascii=False) for text in (place, query, *documents))
    listed = "".join(f"    {text},\n" for text in given)
    return f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({model})  # the model's folder, or its name on the hub
queries = [{asked}]
documents = [
{listed}]
similarities = model.similarity(model.encode_query(queries), model.encode_document(documents))
print(similarities.numpy().round(2))
# {found}
```"""


def _section(heading: str, *paragraphs: str, folded: str = "") -> str:
    """Return a section of a card, ``folded`` under a line if there is one; "" if there is nothing to say in it."""
    said = [paragraph for paragraph in paragraphs if paragraph]
    if said and folded:
        said = [f"<details><summary>{folded}</summary>", *said, "</details>"]
    return "\n\n".join([f"## {heading}", *said]) if said else ""


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _how_trained(recipe: Recipe) -> str:
    """Say how the model was trained; a baseline does not claim what it left out."""
    tokens, bottleneck = recipe.model.num_bottleneck_tokens > 0, recipe.learn.bottleneck != "none"
    pooled = "last appended token's" if tokens else "end-of-text token's"
    what = "appended tokens come" if tokens else "end-of-text token comes"
    stages = [_BOTTLENECK if bottleneck else _CAUSAL_LM] if recipe.learn.enabled else []
    teacher = teacher_of(recipe.represent)
    taught = f", taught by {teacher.partition('@')[0].removeprefix(LOCAL)}" if teacher else ""
    how = f"contrastive training of the {pooled} state{taught}"
    stages += [f"*represent* ({how})"] if recipe.represent.enabled else []
    part = "With" if bottleneck and len(stages) == 2 else "A part or a baseline of"
    share = recipe.release.scale
    kept = f" Of what training changed in its base, the share {share:g} was kept." if share != 1 else ""
    return (
        f"{part} [LBR, Learn Before Represent](https://arxiv.org/abs/2601.11124), by lbr-st: {', then '.join(stages)}. "
        f"The {what} from the tokenizer itself, so plain Sentence Transformers runs this model. Use `encode_query` and "
        f"`encode_document`, which add the prompts that training used.{kept}"
        f"{_QUANTIZED if recipe.model.quantize else ''}"
    )


_BOTTLENECK = (
    "*learn* (generative learning through an information bottleneck: the model compresses a text into a few bottleneck "
    "tokens and generates from these alone, its attention causal)"
)

_CAUSAL_LM = "*learn* (plain causal language modelling on the domain's text, without a bottleneck)"

_QUANTIZED = (
    " Adapters were trained on the base in 4 bits (QLoRA). The weights here are the base's own, in full precision, "
    "with these adapters merged into them."
)

_EXAMPLES = "Which planet is red?", "Mars: there is iron oxide in its soil.", "Venus is the hottest planet."

_NO_LICENCE = "This model: the licence is for those who trained it to choose, and none is stated here."

_LIMITS = """Trained for one domain and one language; expect less elsewhere. Texts longer than the maximum sequence
length are cut. Control tokens in a text are read as plain text. The tokenizer refuses half a character (a lone
surrogate). The results above, if any, are on queries of one form: measure on your own before you rely on it. The model
can carry over errors and biases of its base and its training text."""

BEGIN, END = "<!-- results: written by lbr-st from result files -->", "<!-- end of results -->"
"""The results section stands between these, and `lbr-st card` finds it again by them."""


def refresh_card(path: Path, results: Path, *, systems: Sequence[str] = ()) -> None:
    """Write the results section of a card again from result files; the rest of it stays.

    Args:
        path: A Markdown file, or a model's folder. One without the section gets it before "## Limits", or at its end.
        results: See :func:`read_results`.
        systems: Names of the systems to show, in this order; empty for all.

    Raises:
        LBRError: There is no card, or there are no results, or none of a system.
    """
    card = path / "README.md" if path.is_dir() else path
    if not card.is_file():
        raise LBRError("there is no card here.", where=str(card), fix="Name a model's folder or a Markdown file.")
    rows = read_results(results)
    if systems:
        rows = [(score.name, score) for name in systems for score in find_system([s for _, s in rows], name)]
    text, section = card.read_text(encoding="utf-8"), results_section(rows)
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        text = before + section + rest.partition(END)[2]
    else:
        before, heading, rest = text.partition("\n## Limits")
        text = f"{before.rstrip()}\n\n{section}\n{heading}{rest}"
    write_whole(card, text)


def read_results(path: str | Path) -> list[Row]:
    """Return labels and scores from a run's ``results.json``, or names and latest scores from an output folder.

    Raises:
        LBRError: There are no results there.
    """
    path = Path(path)
    if path.is_dir():
        return [(score.name, score) for score in latest(read_records(path))]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(str(row["label"]), score_from_dict(row)) for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        fix = "Give the results.json of a run, or the folder that lbr-st evaluate wrote."
        raise LBRError(f"cannot be read as results ({type(error).__name__}).", where=str(path), fix=fix) from error


def results_section(rows: Sequence[Row]) -> str:
    """Return the results section, markers included: a table for each task, then how, when and with what it was scored.

    Raises:
        LBRError: There are no rows.
    """
    if not rows:
        raise LBRError("there are no results to show.", fix="Run `lbr-st evaluate MODEL` first.")
    blocks = []
    retrieval, others = ([row for row in rows if bool(row[1].parts) is kind] for kind in (True, False))
    for key in dict.fromkeys((score.task, score.dataset_revision) for _, score in retrieval):
        blocks.append(format_table([row for row in retrieval if (row[1].task, row[1].dataset_revision) == key]))
    for label in dict.fromkeys(label for label, _ in others):
        blocks.append(f"{label}, other tasks:\n\n{format_tasks([score for name, score in others if name == label])}")

    scores = [score for _, score in rows]
    dates = sorted({score.date[:10] for score in scores})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    blocks.append(f"Scored on {when}. Intervals cover the choice of queries, not that of the training seed.")
    ways = {label: _listed(score.experiment) for label, score in rows if score.experiment}
    for way in dict.fromkeys(ways.values()):
        blocks.append(f"Run with {way}: {'; '.join(label for label, own in ways.items() if own == way)}.")
    blocks += [f"Versions: {listed}." for listed in dict.fromkeys(_listed(score.versions) for score in scores)]
    if commands := dict.fromkeys(score.command for score in scores if score.command):
        blocks.append("Commands:\n\n```bash\n" + "\n".join(commands) + "\n```")
    revisions = dict.fromkeys((score.task, score.dataset_revision) for score in scores)
    blocks.append("Data revisions: " + "; ".join(f"{task} `{revision}`" for task, revision in revisions) + ".")
    return f"{BEGIN}\n\n{_section('Results', *blocks)}\n\n{END}"


def _listed(named: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())


def provenance(recipe: Recipe, sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the record that a stage and a release keep: seed, versions, digests of the data, revision of this code.

    With the same record, the same machine gives the same weights to the last bit. It names no folder, user or host.
    ``sources`` is each source of the data by its role: its ``name`` and the SHA-256 of its ``content``.
    """
    return {
        "seed": recipe.seed,
        "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)},
        "git_revision": git_revision(Path(lbr_st.__file__).parent),
        "data": sources,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def git_revision(folder: Path) -> str | None:
    """Return the commit of the checkout that holds a folder's code, with ``-dirty`` if it was changed since.

    None if git does not track the folder, as for an installed package.
    """
    if not git(folder, "ls-files", "--", "."):
        return None
    revision = git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    changed = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{revision}-dirty" if revision and changed else revision or None


def git(folder: Path, *arguments: str) -> str:
    """Return what git prints of a folder; "" where it fails or is not installed."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout.strip()
