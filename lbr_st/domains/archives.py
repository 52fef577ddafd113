"""Public archives by name, pinned by commit and SHA-256: downloaded once, or taken from a local copy of any form."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import urlopen

from lbr_st.domains.definitions import table
from lbr_st.domains.forms import abstracts, commands, snippets, terms
from lbr_st.domains.textbooks import book
from lbr_st.errors import LBRError
from lbr_st.files import cache_dir, notice
from lbr_st.wheels import make_once

if TYPE_CHECKING:
    from datasets import Dataset

LOCAL = "LBR_ST_ARCHIVES"
"""Names a folder of local copies: archives, clones or folders, named as their repositories are."""
READERS: dict[str, Callable[..., Any]] = {one.__name__: one for one in (abstracts, book, commands, snippets, terms)}


class Archive(NamedTuple):
    """A repository on GitHub at a commit, and what is read of it."""

    repository: str
    commit: str
    licence: str
    read: str  # the name of a reader
    files: Mapping[str, str]  # path or pattern → SHA-256, as archives.toml explains
    options: Mapping[str, Any] = MappingProxyType({})  # of the reader

    @property
    def attribution(self) -> str:
        """Its licence, and whom to name."""
        return f"{self.repository} ({self.licence}), https://github.com/{self.repository}/tree/{self.commit}"


_PINNED = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
ARCHIVES = {name: Archive(**values) for name, values in tomllib.loads(_PINNED).items()}


def archive_named(name: str) -> Archive:
    """Return a known archive, or raise :class:`LBRError`."""
    if name not in ARCHIVES:
        fix = f"Name some of: {', '.join(sorted(ARCHIVES))}."
        raise LBRError(f"unknown archive {name!r}.", where="data.archives", fix=fix)
    return ARCHIVES[name]


def archive_tables(name: str) -> tuple[dict[str, Dataset], Dataset]:
    """Return an archive's pairs by their form (``query``, ``document``), and all its passages, each once (``text``).

    Raises:
        LBRError: The archive is unknown, cannot be fetched, or has other bytes than those that are pinned.
    """
    archive = archive_named(name)
    folder = archive_folder(name, archive)
    forms: dict[str, list[tuple[str, str]]] = {}
    texts: dict[str, None] = {}
    for form, query, document in READERS[archive.read](folder, **archive.options):
        texts[document] = None
        if form:
            forms.setdefault(form, []).append((query, document))
    pairs = {form: table(rows, "query", "document") for form, rows in forms.items()}
    return pairs, table(((text,) for text in texts), "text")


def archive_folder(name: str, archive: Archive) -> Path:
    """Return the folder of an archive's files, fetched once and kept under this name.

    Raises:
        LBRError: The archive cannot be fetched, or has other bytes than those that are pinned.
    """
    pinned = hashlib.sha256("".join(archive.files.values()).encode()).hexdigest()[:8]
    return make_once(cache_dir() / "archives" / f"{name}-{pinned}", lambda target: _fill(archive, target))


def _fill(archive: Archive, target: Path) -> None:
    """Put an archive's files into a folder, each at its own path, and compare them with what is pinned."""
    name, url = archive.repository.partition("/")[2], f"https://codeload.github.com/{archive.repository}/tar.gz/"
    copies = sorted(Path(os.environ[LOCAL]).glob(f"{name}*")) if os.environ.get(LOCAL) else []
    place = next((copy for copy in copies if copy.name[len(name) :][:1] in ("", ".", "-")), url + archive.commit)
    notice(f"Reading {archive.repository} at commit {archive.commit[:8]} (once) from {place} ...")
    found: dict[str, dict[str, bytes]] = {pattern: {} for pattern in archive.files}
    try:
        for path, read in _members(place, archive):
            path = path.removeprefix("./")
            path = path.partition("/")[2] if path.startswith(f"{name}-") else path  # as GitHub packs it
            for pattern in archive.files:
                if fnmatchcase(path, pattern):
                    found[pattern][path] = read()
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        fix = f"It is needed once: connect, or set {LOCAL} to a folder with {name}: an archive, a clone or a folder."
        raise LBRError(f"cannot be read: {error}.", where=str(place), fix=fix) from error
    for pattern, files in found.items():
        each = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())}
        listed = "".join(f"{sha256}  {path}\n" for path, sha256 in each.items())
        own = each.get(pattern) or hashlib.sha256(listed.encode()).hexdigest()
        if own != archive.files[pattern]:
            what = f"{len(files)} files with SHA-256 {own}, expected {archive.files[pattern]}. Nothing was kept."
            raise LBRError(what, where=f"{place}: {pattern}", fix=f"Give the repository at commit {archive.commit}.")
        for path, content in files.items():  # what was checked
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)


def _members(place: Path | str, archive: Archive) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the path of each file in an archive, a clone or a folder, and what reads it; only then it is opened."""
    if isinstance(place, str):
        with urlopen(place, timeout=60) as stream:
            yield from _packed(stream)
    elif (place / ".git").exists() or (place / "HEAD").is_file():  # whatever is checked out
        command = ["git", "-C", str(place), "archive", "--format=tar", archive.commit, "--", *archive.files]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as git:
            yield from _packed(git.stdout)
    elif place.is_dir():
        for file in place.rglob("*"):
            if file.is_file():
                yield file.relative_to(place).as_posix(), file.read_bytes
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as packed:
            yield from ((one, partial(packed.read, one)) for one in packed.namelist() if not one.endswith("/"))
    else:
        with place.open("rb") as stream:
            yield from _packed(stream)


def _packed(stream: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|*") as packed:
        for member in packed:
            if file := packed.extractfile(member):
                yield member.name, file.read
