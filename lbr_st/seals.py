"""Seals: a folder's files by size and SHA-256, written last; they tell the whole from the cut off and the damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lbr_st.files import flush, sha256_of

SEAL = "files.json"


def seal(folder: Path) -> None:
    """Write down the size and SHA-256 of every file in a folder, once all of them are on disk.

    A folder without a seal was not finished.
    """
    flush(folder)
    files = listing(folder)
    files.pop(SEAL, None)
    aside = folder / f".{SEAL}.partial"
    aside.write_text(json.dumps(files, indent=1), encoding="utf-8")
    flush(aside)
    aside.replace(folder / SEAL)
    flush(folder)


def is_sealed(folder: Path) -> bool:
    """Tell whether a folder was finished."""
    return (folder / SEAL).is_file()


def damage(folder: Path, *, contents: bool = True) -> str | None:
    """Return what is wrong with a sealed folder, its first damaged file by name; None if all is as it was.

    Args:
        folder: The folder.
        contents: Read every file; False compares sizes alone, which takes no time.
    """
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        listed = {name: {"size": entry["size"], "sha256": entry["sha256"]} for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} cannot be read"
    return difference(folder, listed, contents=contents)


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the ``size`` and ``sha256`` of every file in a folder, by its name there."""
    return {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def difference(folder: Path, files: Mapping[str, Mapping[str, Any]], *, contents: bool = True) -> str | None:
    """Return what sets a folder's files apart from a :func:`listing` of them; None if all are as listed.

    Args:
        folder: The folder; files that are not listed are not looked at.
        files: The listing.
        contents: As for :func:`damage`.
    """
    for name, listed in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != listed["size"]:
            return f"{name} has {found:,} bytes where {listed['size']:,} were written"
    for name, listed in files.items() if contents else ():
        if sha256_of(folder / name) != listed["sha256"]:
            return f"{name} is not what was written (its SHA-256 differs)"
    return None


def set_aside(folder: Path, place: Path) -> Path:
    """Move a damaged folder to ``damaged/`` in ``place``, under a name that is free there; return where it lies now."""
    (place / "damaged").mkdir(exist_ok=True)
    number, target = 1, place / "damaged" / folder.name
    while target.exists():
        number += 1
        target = place / "damaged" / f"{folder.name}-{number}"
    folder.rename(target)
    return target
