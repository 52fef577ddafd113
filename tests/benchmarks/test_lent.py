"""What a lent GPU does: large files in parts, steps that end with the minutes, and what was done is not done again."""

import json

import pytest


def test_parts_make_the_file_again(proof, tmp_path):
    for number, piece in enumerate((b"ab", b"cd", b"e")):
        (tmp_path / f"x-1.0-py3-none-any.whl.part{number}").write_bytes(piece)
    proof.lent.join(tmp_path)
    assert (tmp_path / "x-1.0-py3-none-any.whl").read_bytes() == b"abcde"


def test_a_step_that_is_done_is_kept_and_one_that_was_ended_is_done_again(proof, tmp_path, monkeypatch, capsys):
    count = tmp_path / "count"
    once = ["-c", f"open({str(count)!r}, 'a').write('x')"]
    wait = ["-c", "import time; print('waits', flush=True); time.sleep(60)"]
    made = [proof.lent.Step("first", [once, once]), proof.lent.Step("second", [wait, once])]
    monkeypatch.setattr(proof.lent, "steps", lambda work, *, tiny: made)
    out = tmp_path / "out"
    proof.lent.run(tmp_path / "wheels", out, 0.1, tiny=True)
    assert count.read_text() == "xx"
    made[1] = proof.lent.Step("second", [once])
    proof.lent.run(tmp_path / "wheels", out, 1, tiny=True)
    assert count.read_text() == "xxx"
    rows = [json.loads(line) for line in (out / "lent.jsonl").read_text().splitlines()]
    assert [(row["step"], row["status"]) for row in rows] == [("first", 0), ("second", 124), ("second", 0)]
    assert "waits" in capsys.readouterr().out


@pytest.mark.parametrize("tiny", [True, False])
def test_every_script_and_recipe_that_a_step_names_is_there(proof, tmp_path, tiny):
    for step in proof.lent.steps(tmp_path, tiny=tiny):
        for command in step.commands:
            words = [word.removeprefix("--config=") for word in command]
            assert all((proof.lent.ROOT / word).is_file() for word in words if word.endswith((".py", ".yaml")))
