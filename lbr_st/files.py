"""Files and folders that appear whole or not at all, locks, and what may be told of this machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

from lbr_st.errors import LBRError


def cache_dir() -> Path:
    """Return the folder for downloads and conversions: ``$LBR_ST_CACHE``, else ``~/.cache/lbr-st``."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lbr-st"
    return Path(os.environ.get("LBR_ST_CACHE") or default)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_nameless(path: Path) -> None:
    """Raise :class:`LBRError` if ``path`` has no name of its own, as ``..``: locks and unfinished folders need one."""
    if path.name in ("", ".."):
        fix = "Give one, such as my-model or ./my-model."
        raise LBRError("an output must have a name of its own.", where=str(path), fix=fix)


def refuse_existing(path: Path, *, overwrite: bool = False) -> None:
    """Raise :class:`LBRError` if ``path`` already holds something and ``overwrite`` is off."""
    if not overwrite and path.exists() and (not path.is_dir() or any(path.iterdir())):
        fix = "Choose another folder, remove this one, or pass overwrite."
        raise LBRError("the output already exists.", where=str(path), fix=fix)


@contextmanager
def new_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends well, and is removed when it does not.

    The folder is written next to ``path``, flushed to disk and renamed. A folder that exists is therefore whole.

    Raises:
        LBRError: ``path`` has no name, or exists and ``overwrite`` is off.
    """
    path = Path(path)
    refuse_nameless(path)
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield aside
        # mkdtemp's mode 0700 is for secrets; others may read a release. Some libraries write files the same way.
        umask = os.umask(0)
        os.umask(umask)
        for item in (aside, *aside.rglob("*")):
            item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)
        flush(aside)
        _swap(aside, path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 text file that appears whole or not at all, and replace one that exists."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        flush(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _swap(aside: Path, path: Path) -> None:
    """Replace ``path`` by ``aside``; the old folder is removed once the new one is in place."""
    if not path.exists():
        aside.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)  # left by a killed process with the same number
    path.rename(old)
    try:
        aside.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


MARKER = "files.json"  # written last; any content counts: older versions listed the other files in it


def mark_whole(folder: Path) -> None:
    """Mark a folder that was filled in place as whole, once all its files are on disk."""
    flush(folder)
    write_whole(folder / MARKER, "{}")
    _fsync(folder)


def is_marked_whole(folder: Path) -> bool:
    """Tell whether :func:`mark_whole` marked a folder. Folders that :func:`new_folder` made need no mark."""
    return (folder / MARKER).is_file()


def flush(path: Path) -> None:
    """Flush a file, or a folder and all its contents, to disk."""
    for item in [*(path.rglob("*") if path.is_dir() else ()), path]:
        _fsync(item)


def _fsync(item: Path) -> None:
    descriptor = os.open(item, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def only_run(*paths: Path) -> Iterator[None]:
    """Lock folders for this process while the block runs, and clear what a killed run left next to them.

    Raises:
        LBRError: Another process holds one of them.
    """
    with ExitStack() as held:
        for path in dict.fromkeys(Path(path).absolute() for path in paths):
            try:
                held.enter_context(alone(path, wait=False))
            except BlockingIOError:
                fix = "Wait until it ends, stop it, or choose another folder."
                raise LBRError("another run is using this folder.", where=str(path), fix=fix) from None
        yield


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Wait until no other process is inside this block for ``path``, then lock it like :func:`only_run`.

    The lock is ``.<name>.lock`` next to ``path``. Who holds it removes the file in the end; a killed process leaves it,
    but does not hold it.

    Raises:
        BlockingIOError: Another process is inside, and ``wait`` is off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file after it was opened here: another process then locks a new one.
            if not _is_at(lock, file.fileno()):
                continue
            try:
                clear_leftovers(path)
                yield
            finally:
                lock.unlink(missing_ok=True)  # before it is let go: what is removed is the file that is held
            return


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def clear_leftovers(path: Path) -> None:
    """Restore or remove what a killed :func:`new_folder` left of ``path``. The caller holds the lock."""
    replaced = list(path.parent.glob(f".{path.name}.*.old"))
    if replaced and not path.exists():  # a swap that was killed between its two steps
        replaced.pop().rename(path)
    for left in (*path.parent.glob(f".{path.name}.*.partial"), *replaced):
        shutil.rmtree(left, ignore_errors=True)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return package → version, without those that are not installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def import_extra(module: str, extra: str = "eval") -> Any:
    """Import and return a module, given its dotted name, that an extra brings; or say how to install it."""
    # mteb creates ~/.cache/mteb while it is imported. Keep it with our own files unless the user chose a folder.
    os.environ.setdefault("MTEB_CACHE", str(cache_dir() / "mteb"))
    try:
        with _without_jax() if module == "bm25s" else nullcontext():
            return import_module(module)
    except ImportError as error:
        raise LBRError(f"this needs {module}: {error}.", fix=f'Run: pip install "lbr-st[{extra}]"') from error


@contextmanager
def _without_jax() -> Iterator[None]:
    """Hide JAX and numba: bm25s imports both if it can, and JAX then takes three quarters of a GPU's memory."""
    names = ("jax", "jax.lax", "numba")
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def notice(message: str) -> None:
    """Print a line on standard error that says what is going on; with several processes, only from the first."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)


BETWEEN_LINES = 60.0  # seconds between two lines of a bar that is not on a terminal


def bar(items: Any, title: str, unit: str, *, total: int | None = None, done: int = 0, shown: bool = True) -> Any:
    """Return tqdm's bar over ``items``, or with None to be moved by hand; only the first of several processes shows it.

    It is on standard error, and gone when it is closed. Without a terminal it is a line a minute.
    """
    from tqdm import tqdm

    out, hidden = sys.stderr, not shown or os.environ.get("RANK", "0") != "0"
    told = "{n_fmt} of {total_fmt} {unit}, {remaining} left{postfix}"
    look: dict[str, Any] = {"file": out, "dynamic_ncols": True, "bar_format": "{l_bar}{bar}| " + told}
    if not out.isatty():
        lines = SimpleNamespace(write=lambda text: text.strip() and print(text.strip(), file=out, flush=True))
        look = {"file": lines, "mininterval": BETWEEN_LINES, "delay": BETWEEN_LINES, "miniters": 1}
        look["bar_format"] = "{desc}: " + told
    return tqdm(items, title, total, leave=False, unit=unit, initial=done, disable=hidden, **look)


def without_place(name: str) -> str:
    """Return the last part of an absolute path, or of one below a home folder; anything else unchanged.

    What leaves this machine names a file, but not where it is here. A relative path is the user's own choice.
    """
    if name.startswith(UNTRAINED):
        return UNTRAINED + without_place(name.removeprefix(UNTRAINED))
    if name.startswith(("/", "~")):
        return PurePosixPath(name).name or name
    windows = PureWindowsPath(name)
    return windows.name or name if windows.drive or name.startswith("\\") else name


UNTRAINED, LOCAL = "untrained:", "local:"
"""Before a base that is scored as it is, and before the name of what only the machine of a published recipe has."""
BESIDE = ".lbr-st"
"""The hidden folder inside a folder of documents, where their embeddings are kept."""
NO_HUB_ID = ("/", "./", "../", "~", LOCAL)
"""What begins a name that no hub has, even if nothing is there."""


def published(name: str, known: Collection[str] = ()) -> str:
    """Return what others may read of a file, a folder or a hub id, such that no hub is asked for what was local.

    A path that leads out of the current folder becomes ``local:NAME@sha256:DIGEST``, or ``local:NAME`` if it cannot be
    read. A folder below the current one gets ``./`` in front, unless it has one of the ``known`` names.
    """
    own = name.removeprefix(UNTRAINED)
    kind, path = name.removesuffix(own), Path(os.path.normpath(Path(own).expanduser()))
    if str(path).startswith(("/", "..")):
        with suppress(OSError):
            return f"{kind}{LOCAL}{path.name}@sha256:{digest_of(path)}"
        return f"{kind}{LOCAL}{path.name}"
    return f"{kind}./{own}" if path.is_dir() and own not in known and own[:1] != "." else without_place(name)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of what ``sha256sum`` prints of a folder's files but :data:`BESIDE`, sorted."""
    if not path.is_dir():
        return sha256_of(path)
    files = sorted((file for file in path.rglob("*") if file.is_file() and BESIDE not in file.parts), key=str)
    listed = "".join(f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(os.fsencode(listed)).hexdigest()


def command_line() -> str:
    """Return the command line of this process as a person would type it, for records and cards.

    It does not say where this machine keeps its files.
    """
    program, arguments = Path(sys.argv[0]), sys.argv[1:]
    script = program.suffix == ".py" and program.name != "__main__.py"
    words = ["python", "/".join(program.parts[-2:])] if script else ["lbr-st"]
    for word in arguments:
        flag, equals, value = word.partition("=")
        named = equals and flag.startswith("--")
        words.append(f"{flag}={without_place(value)}" if named else without_place(word))
    return shlex.join(words)
