"""What a model was made of and with: seed, versions, digests of the data, the revision of this code."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from lbr_st.processes import world_size
from lbr_st.recipe import Recipe
from lbr_st.versions import installed_versions

PROVENANCE = "provenance.json"

PACKAGES = ("lbr-st", "sentence-transformers", "transformers", "torch", "peft", "accelerate", "datasets", "tokenizers")


def provenance(recipe: Recipe, sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the record that a stage and a release keep.

    With the same record, the same machine gives the same weights to the last bit. It names no folder, user or host.

    Args:
        recipe: The run.
        sources: What :attr:`lbr_st.run_data.RunData.sources` says.
    """
    return {
        "seed": recipe.seed,
        "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)},
        "git_revision": git_revision(Path(__file__).parent),
        "data": sources,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def git_revision(folder: Path) -> str | None:
    """Return the commit of the checkout that holds a folder's code, with ``-dirty`` if it was changed since.

    None if git does not track the folder, as for an installed package.
    """
    if shutil.which("git") is None or not _git(folder, "ls-files", "--", "."):
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return revision and (f"{revision}-dirty" if changed else revision)


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", check=False
    )
    return done.stdout.strip() or None if done.returncode == 0 else None
