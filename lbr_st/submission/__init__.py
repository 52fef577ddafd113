"""The leaderboard kit: all that MTEB wants of a released model, and what a person must still do."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbr_st.errors import LBRError
from lbr_st.evaluation.systems import model_digest
from lbr_st.files import explain_disk_errors, refuse_existing
from lbr_st.model_files import load_stock, read_modules
from lbr_st.recipe import load_recipe
from lbr_st.registry import notice
from lbr_st.submission.facts import Given, collect, training_sources
from lbr_st.submission.meta_file import file_name, load_meta, register, render
from lbr_st.submission.mock import MockRun, load_through, mock_run
from lbr_st.submission.results import Filed, file_results
from lbr_st.submission.steps import write_steps

__all__ = [
    "Filed",
    "MockRun",
    "Submission",
    "load_meta",
    "load_through",
    "mock_run",
    "register",
    "submission",
]

REPORT, STEPS = "mock_run.md", "STEPS.md"


@dataclass(frozen=True)
class Submission:
    """What :func:`submission` wrote.

    Args:
        folder: Where.
        name: ``org/model``.
        revision: The hub's commit, or the digest as long as there is none.
        digest: lbr-st's digest of the model, which its scores bear.
        meta_file: The file with the ``ModelMeta``.
        filed: Where scores went.
        mock: MTEB's mock run.
        seconds: Wall time of the mock run, the loading included.
    """

    folder: Path
    name: str
    revision: str
    digest: str
    meta_file: Path
    filed: Filed
    mock: MockRun
    seconds: float

    @property
    def published(self) -> bool:
        """Whether the revision is a commit on the hub."""
        return self.revision != self.digest


def submission(
    model_folder: str | Path,
    *,
    org: str,
    output: str | Path = "submission",
    results: str | Path | None = None,
    revision: str | None = None,
    name: str | None = None,
    release_date: str | None = None,
    license: str | None = None,
    languages: Sequence[str] | None = None,
    adapted_from: str | None = None,
    training_datasets: Sequence[str] | None = None,
    public_training_code: str | None = None,
    public_training_data: str | None = None,
    reference: str | None = None,
    contacts: Sequence[str] | None = None,
) -> Submission:
    """Write ``<name>_models.py``, ``results/``, ``mock_run.md`` and ``STEPS.md`` for a released model.

    Running it again on the same ``output`` brings these up to date; results in it, of ``mteb run`` for one, stay.

    Args:
        model_folder: A release in stock form.
        org: The organisation or user on the hub that the model will belong to.
        output: The folder to write.
        results: The folder that ``lbr-st evaluate`` wrote; None for none.
        revision: The commit of the model on the hub, 40 hexadecimal digits; None before it is there.
        name: The model's name on the hub; None for the folder's.
        release_date: Day of the release, ``YYYY-MM-DD``; None for today (UTC).
        license: Licence of the weights; None for the card's, then the base's.
        languages: Such as ``"eng-Latn"``; None for the card's.
        adapted_from: Hub id of the base; None for the recipe's.
        training_datasets: MTEB tasks whose data was trained on; None for those that the recipe's sources name.
        public_training_code: URL of the training code, where it is public.
        public_training_data: URL of the training data, where it is public.
        reference: URL of the model's page; None for its page on the hub.
        contacts: GitHub handles.

    Raises:
        LBRError: The folder is no release in stock form, ``output`` holds something else, a name or revision is
            malformed, or something can be found nowhere; the message names the option to give.
    """
    folder, output = Path(model_folder), Path(output)
    refuse_training_form(folder)
    full = _full_name(org, name or folder.resolve().name)
    if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise LBRError(
            f"{revision!r} is no commit.", where="revision", fix="Give all 40 hexadecimal digits, or leave it out."
        )
    meta_file = output / file_name(full)
    if not (meta_file.is_file() or (output / STEPS).is_file()):
        refuse_existing(output)
    given = Given(
        release_date=release_date,
        license=license,
        languages=_list(languages),
        adapted_from=adapted_from,
        training_datasets=_list(training_datasets),
        public_training_code=public_training_code,
        public_training_data=public_training_data,
        reference=reference,
        contacts=_list(contacts),
    )
    digest, text, sources = _describe(folder, full, revision, given)
    with explain_disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        meta_file.write_text(text, encoding="utf-8")
        meta = load_meta(meta_file)
        filed = file_results(Path(results) if results is not None else None, output, meta, digest)
        notice("Running MTEB's mock tasks on the model, loaded through the file; minutes on a CPU …")
        start = time.monotonic()
        mock = mock_run(meta_file, folder)
        seconds = time.monotonic() - start
        (output / REPORT).write_text(mock.report, encoding="utf-8")
        steps = write_steps(
            meta,
            model_folder=folder,
            output=output,
            meta_file=meta_file,
            published=revision is not None,
            given=given,
            sources=sources,
            filed=filed,
            mock=mock,
        )
        (output / STEPS).write_text(steps, encoding="utf-8")
    return Submission(output, full, meta.revision, digest, meta_file, filed, mock, seconds)


def _describe(folder: Path, full: str, revision: str | None, given: Given) -> tuple[str, str, list[str]]:
    """Return the model's digest, the text of its meta file and the names of what it was trained on."""
    recipe = load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    model = load_stock(str(folder), device="cpu")
    digest = model_digest(model)
    meta = collect(model, folder, recipe, name=full, revision=revision or digest, given=given)
    sources = training_sources(recipe)
    comments = {}
    if revision is None:
        comments["revision"] = f"lbr-st's digest of the weights, until the hub has a commit; see {STEPS}"
    if sources:
        which = "the data of these tasks" if meta.training_datasets else "none of it the data of an MTEB task"
        comments["training_datasets"] = f"trained on {', '.join(sources)}: {which}"
    return digest, render(meta, comments), sources


def refuse_training_form(folder: Path) -> None:
    """Refuse what plain Sentence Transformers, and so MTEB, cannot load.

    Raises:
        LBRError: ``folder`` is no Sentence Transformers model, or one with modules of lbr-st or of another package.
    """
    types = [kind for kind, _ in read_modules(folder)]
    if any(kind.startswith("lbr_st.") for kind in types):
        raise LBRError(
            "is in training form, which MTEB cannot load.",
            where=str(folder),
            fix=f"Run `lbr-st release {folder} --output released` and give that folder.",
        )
    foreign = [kind for kind in types if not kind.startswith("sentence_transformers.")]
    if foreign:
        raise LBRError(
            f"has modules that Sentence Transformers lacks: {', '.join(foreign)}.",
            where=str(folder),
            fix="MTEB loads plain Sentence Transformers models only; give one that lbr-st release wrote.",
        )


def _full_name(org: str, name: str) -> str:
    for what, word in (("org", org), ("name", name)):
        # The hub's own rule.
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", word, re.ASCII) or word.endswith((".", "-", ".git")) or ".." in word:
            raise LBRError(f"{word!r} cannot be a name on the hub.", where=what, fix=f"Give another --{what}.")
    return f"{org}/{name}"


def _list(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)
