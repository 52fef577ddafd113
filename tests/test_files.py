"""Folders appear whole or not at all, and are locked for one process at a time."""

import signal
import subprocess
import sys

import pytest

from lbr_st.errors import LBRError
from lbr_st.files import alone, new_folder, only_run


def test_a_folder_appears_when_the_block_ends_well(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as aside:
        (aside / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError("boom"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(tmp_path, error):
    def spoil():
        with new_folder(tmp_path / "out") as aside:
            (aside / "file").write_text("x")
            raise error

    with pytest.raises(type(error)):
        spoil()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_what_was_there(tmp_path):
    with new_folder(tmp_path / "out") as aside:
        (aside / "old").write_text("x")
    with pytest.raises(ValueError, match="boom"), new_folder(tmp_path / "out", overwrite=True):
        raise ValueError("boom")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    with new_folder(tmp_path / "out", overwrite=True) as aside:
        (aside / "new").write_text("x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_an_existing_folder_is_refused_but_an_empty_one_is_not(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as aside:
        (aside / "file").write_text("x")
    with pytest.raises(LBRError, match="already exists"), new_folder(tmp_path / "out"):
        pass


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    for left in (".out.abc.partial", ".out.123.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").write_text(left)
    with only_run(tmp_path / "out"):
        # The swap was killed between its two steps: the folder from before is back.
        assert (tmp_path / "out" / "file").read_text() == ".out.123.old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


COUNT = """
import sys
from pathlib import Path
from lbr_st.files import alone
counter = Path(sys.argv[1])
for _ in range(300):
    with alone(counter):
        inside = counter.with_suffix(".inside")
        inside.touch(exist_ok=False)  # fails if another process is in here, too
        counter.write_text(str(int(counter.read_text()) + 1))
        inside.unlink()
"""


def test_processes_exclude_one_another_and_no_lock_is_left(tmp_path):
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "counter")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[1] for process in running] == [""] * 4
    assert (tmp_path / "counter").read_text() == "1200"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_a_lock_is_refused_at_once_and_a_killed_process_holds_none(tmp_path):
    hold = "import sys, time; from pathlib import Path; from lbr_st.files import alone\n"
    hold += "with alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", hold, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LBRError, match="another run is using this folder"), only_run(tmp_path / "out"):
            pass
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    with alone(tmp_path / "out", wait=False):
        pass
    assert list(tmp_path.iterdir()) == []
