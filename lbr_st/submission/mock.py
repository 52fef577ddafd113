"""MTEB's mock run of a model that MTEB's own loader loads through the written file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from lbr_st.evaluation.mteb_task import import_extra, quiet_mteb
from lbr_st.submission.meta_file import load_meta, register


@dataclass(frozen=True)
class MockRun:
    """What MTEB's mock run found.

    Args:
        total: Mock tasks that fit the model; 28 for one of texts.
        failures: Mock task → why it failed or was not run.
        report: MTEB's own report, Markdown.
    """

    total: int
    failures: dict[str, str]
    report: str

    @property
    def passed(self) -> int:
        """Mock tasks that ran to the end."""
        return self.total - len(self.failures)

    @property
    def ok(self) -> bool:
        """Whether there were mock tasks and all passed."""
        return self.total > 0 and not self.failures


def load_through(meta_file: str | Path, model_folder: str | Path) -> Any:
    """Load a model by ``mteb.get_model`` with an unchanged meta file, before the model is on the hub.

    Sentence Transformers takes a folder of the name ``org/model`` for the hub's repository. So the loader is run from a
    folder in which that name leads to the model; the registry is as before afterwards.

    Args:
        meta_file: The file with its ``ModelMeta``.
        model_folder: The release.

    Returns:
        The model in MTEB's wrapper.

    Raises:
        LBRError: The file cannot be used.
    """
    folder = Path(model_folder).resolve()
    with _registered(meta_file) as meta, tempfile.TemporaryDirectory() as place:
        link = Path(place) / meta.name
        link.parent.mkdir(parents=True)
        link.symlink_to(folder, target_is_directory=True)
        with chdir(place), _quiet():
            return import_extra("mteb").get_model(meta.name, meta.revision)


def mock_run(meta_file: str | Path, model_folder: str | Path) -> MockRun:
    """Run all of MTEB's mock tasks on a model, as ``mteb mock-run`` does; nothing is downloaded.

    Args:
        meta_file: The file with its ``ModelMeta``.
        model_folder: The release.

    Raises:
        LBRError: The file cannot be used.
    """
    model = load_through(meta_file, model_folder)
    with _quiet(), redirect_stderr(StringIO()):  # 28 tasks with a bar or two each
        results = import_extra("mteb").mock_run(model)
    done = import_extra("mteb.results.task_result").TaskResult
    fitting = {task: status for task, status in results.items() if status is not None}
    failures = {task: str(status.exception) for task, status in fitting.items() if not isinstance(status, done)}
    return MockRun(len(fitting), failures, f"{results.to_markdown()}\n")


@contextmanager
def _quiet() -> Iterator[None]:
    with quiet_mteb(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _registered(meta_file: str | Path) -> Iterator[Any]:
    registry = import_extra("mteb.models.model_implementations").MODEL_REGISTRY
    before = registry.get(load_meta(meta_file).name)
    meta = register(meta_file)
    try:
        yield meta
    finally:
        if before is None:
            del registry[meta.name]
        else:
            registry[meta.name] = before
