"""Pinned wheels: fetched once, checked, and read from the cache; whoever is killed leaves nothing half-made."""

import hashlib
import os
import signal
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from lbr_st import wheels
from lbr_st.domains import definitions, python_docs
from lbr_st.domains.tasks import DOMAIN_TASKS, pinned_wheels
from lbr_st.errors import LBRError
from lbr_st.model.bases import BASES, EMBEDDERS

NAME = "thing-1.0-py3-none-any.whl"


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A registry with one wheel of one file; ``pip.calls`` holds the commands that were run."""
    wheel = tmp_path / "source.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/data.txt", "hello")
    fake = SimpleNamespace(wheel=wheel.read_bytes(), sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), calls=[])

    def run(command):
        fake.calls.append(command)
        Path(command[command.index("--dest") + 1], NAME).write_bytes(fake.wheel)
        return 0, ""

    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheels, "_run", run)
    return fake


def left_behind(tmp_path):
    return sorted(item.name for item in (tmp_path / "cache" / "wheels").glob("*"))


def test_fetches_once_and_then_reads_the_cache(pip, tmp_path):
    pinned = ("thing==1.0", NAME, pip.sha256)
    folder = wheels.fetch_wheel(*pinned)
    assert folder == tmp_path / "cache" / "wheels" / f"thing-1.0-{pip.sha256[:8]}"
    assert (folder / "thing" / "data.txt").read_text(encoding="utf-8") == "hello"
    assert len(pip.calls) == 1
    assert left_behind(tmp_path) == [folder.name]
    assert {"download", "--no-deps", "--only-binary=:all:", "thing==1.0"} <= set(pip.calls[0])


def test_wrong_hash_keeps_nothing(pip, tmp_path):
    with pytest.raises(LBRError) as caught:
        wheels.fetch_wheel("thing==1.0", NAME, "0" * 64)
    assert all(part in str(caught.value) for part in (NAME, pip.sha256, "0" * 64))
    assert left_behind(tmp_path) == []


def test_quotes_pip_when_it_fails(pip, monkeypatch, tmp_path):
    output = "WARNING: Retrying\nERROR: No matching distribution found for thing==1.0\n\n"
    monkeypatch.setattr(wheels, "_run", lambda command: (1, output))
    with pytest.raises(LBRError) as caught:
        wheels.fetch_wheel("thing==1.0", NAME, "0" * 64)
    message = str(caught.value)
    assert all(part in message for part in ("ERROR: No matching distribution found", "PIP_INDEX_URL", NAME))
    assert "WARNING" not in message
    assert left_behind(tmp_path) == []


def test_says_when_pip_is_missing(pip, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LBRError, match="ensurepip"):
        wheels.fetch_wheel("thing==1.0", NAME, "0" * 64)
    assert pip.calls == []


def test_who_comes_second_waits_and_takes_what_the_first_made(tmp_path):
    folder, begun, go_on = tmp_path / "entry", threading.Event(), threading.Event()

    def slowly(target):
        begun.set()
        assert go_on.wait(timeout=10)
        (target / "data.txt").write_text("first")

    first = threading.Thread(target=wheels.make_once, args=(folder, slowly))
    first.start()
    assert begun.wait(timeout=10)
    threading.Timer(0.2, go_on.set).start()
    assert wheels.make_once(folder, lambda target: pytest.fail("made a second time")) == folder
    first.join()
    assert (folder / "data.txt").read_text() == "first"


def test_run_returns_the_exit_code_and_stderr():
    code, output = wheels._run([wheels.sys.executable, "-c", "import sys; print('out'); sys.exit('bad luck')"])
    assert (code, output.strip()) == (1, "bad luck")


def test_every_download_is_pinned():
    pinned = [definitions.WHEEL, *((base.requirement, base.wheel, base.sha256) for base in BASES.values())]
    pinned += [pin[:3] for pin in EMBEDDERS.values()]
    packages = (*python_docs.EVALUATION_PACKAGES, *python_docs.TRAINING_PACKAGES)
    pinned += [(f"{one.name}=={one.version}", one.name, one.sha256) for one in packages]
    for requirement, _, sha256 in pinned:
        assert requirement.count("==") == 1
        assert not set(requirement.partition("==")[2]) & set("*<>,~")
        assert len(sha256) == 64
        assert int(sha256, 16)
    assert all(len(sha256) == 64 for name in DOMAIN_TASKS for sha256 in pinned_wheels(name))


def killed_in(work):
    """Do something in a process that is killed in the middle of it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_killed_while_it_downloads_it_starts_again_and_leaves_nothing(pip, tmp_path, monkeypatch):
    def half(requirement, filename, place):
        (place / filename).write_bytes(pip.wheel[:20])
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "_pip_download", half)
        killed_in(lambda: wheels.fetch_wheel("thing==1.0", NAME, pip.sha256))
    folder = wheels.fetch_wheel("thing==1.0", NAME, pip.sha256)
    assert (folder / "thing" / "data.txt").read_text() == "hello"
    assert left_behind(tmp_path) == [folder.name]
