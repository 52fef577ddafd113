"""The hub: is it there, and which commit does a dataset's revision stand for?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbr_st.errors import LBRError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

COMMIT = re.compile(r"[0-9a-f]{40}")
SHORT = re.compile(r"[0-9a-f]{7,40}")


def hub_is_off() -> bool:
    """Whether ``HF_HUB_OFFLINE`` tells the hub's client to use its cache only."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_reachable(seconds: float = 5.0) -> bool:
    """Ask the hub once, so that no task waits through the retries of its client when it cannot be reached.

    Args:
        seconds: How long to wait for an answer.
    """
    if hub_is_off():
        return False
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # whatever the HTTP client raises: no route, no name, a proxy's refusal, a certificate
        return False
    return True


def pin_revision(task: AbsTask, commit: str | None = None) -> None:
    """Give a task whose dataset revision is a branch a commit in its place, so that its scores say what was read.

    Args:
        task: It is changed in place, and only if its revision is no commit.
        commit: The commit, or its first digits; None for the one that the branch is at.

    Raises:
        LBRError: The hub does not know the commit, and neither does its cache.
    """
    dataset: dict[str, Any] = dict(task.metadata.dataset)
    path, revision = dataset["path"], str(dataset["revision"])
    if COMMIT.fullmatch(revision):
        return
    found = (_cached_commit if hub_is_off() else _commit)(path, commit or revision)
    if found is None:
        raise LBRError(
            f"MTEB leaves its dataset {path} unpinned at {revision!r}, and the commit "
            f"{commit or 'that this stands for'} cannot be had.",
            where=task.metadata.name,
            fix="Run it once with the hub in reach.",
        )
    # The metadata belongs to the class, and so to every task of its kind in this process; the copy to this one only.
    task.metadata = task.metadata.model_copy(update={"dataset": {**dataset, "revision": found}})


def _commit(path: str, wanted: str) -> str | None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        if not SHORT.fullmatch(wanted):
            return api.dataset_info(path, revision=wanted, timeout=10).sha
        # The hub resolves branches, tags and whole commits, not the first digits of one.
        commits = (commit.commit_id for commit in api.list_repo_commits(path, repo_type="dataset"))
        return next((commit for commit in commits if commit.startswith(wanted)), None)
    except Exception:  # each kind of failure has its own type; all mean that the commit is not known
        return None


def _cached_commit(path: str, wanted: str) -> str | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}"
    if SHORT.fullmatch(wanted):
        kept = sorted(snapshot.name for snapshot in folder.glob(f"snapshots/{wanted}*"))
        return kept[0] if kept else None
    try:
        commit = (folder / "refs" / wanted).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if COMMIT.fullmatch(commit) else None
