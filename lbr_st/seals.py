"""Seals: a folder's files by size and SHA-256, written last; they tell the whole from the cut off and the damaged."""

from __future__ import annotations

import json
from pathlib import Path

from lbr_st.files import flush, sha256_of

SEAL = "files.json"


def seal(folder: Path) -> None:
    """Write down the size and SHA-256 of every file in a folder, once all of them are on disk.

    A folder without a seal was not finished.
    """
    flush(folder)
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / SEAL
    }
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
        items = [(name, entry["size"], entry["sha256"]) for name, entry in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} cannot be read"
    for name, size, _ in items:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found:,} bytes where {size:,} were written"
    for name, _, sha256 in items if contents else ():
        if sha256_of(folder / name) != sha256:
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
