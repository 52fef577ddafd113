"""Folders appear whole or not at all."""

import pytest

from lbr_st.errors import LBRError
from lbr_st.files import new_folder, only_run


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
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]
