"""What a person sees of a run: one bar, lines where there is no terminal, and no other library's bars."""

import io
import re
from itertools import count

import datasets
import pytest
import torch
from datasets import Dataset
from tiny_models import WORDS, new_model
from transformers.utils import logging

from lbr_st import files
from lbr_st.files import bar
from lbr_st.recipe import LearnConfig, RepresentConfig
from lbr_st.training.learn import learn
from lbr_st.training.progress import counted, quiet_libraries
from lbr_st.training.represent import represent, with_hard_negatives


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """Return where standard error goes: to a terminal or not. A bar is drawn, or has a line, whenever it moves."""

    def place(*, terminal):
        out = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr("sys.stderr", out)
        monkeypatch.setattr(files, "BETWEEN_LINES", 0.0)
        monkeypatch.setattr("tqdm.std.time", count(1000).__next__)
        return out

    return place


def train(model, folder):
    """Train both stages for a few steps."""
    config = {"max_steps": 6, "batch_size": 2, "warmup_steps": 1, "eval_steps": 3}
    pairs = {"context": [f"query: {word}" for word in WORDS], "target": WORDS}
    held_out = Dataset.from_dict({name: texts[:4] for name, texts in pairs.items()})
    options = {"precision": "float32", "report_to": "none"}
    with quiet_libraries():
        pairs = Dataset.from_dict(pairs)
        learn(model, pairs, LearnConfig(**config), held_out=held_out, output_dir=folder / "learn", **options)
        pairs = Dataset.from_dict({"query": WORDS, "document": [f"the {word}" for word in WORDS]})
        represent(model, pairs, RepresentConfig(**config), output_dir=folder / "represent", **options)


def test_a_stage_has_one_bar_with_loss_gain_and_time(tiny_base, tmp_path, shown):
    model, out = new_model(tiny_base("llama")), shown(terminal=True)
    train(model, tmp_path)
    states = [state.strip() for state in re.split(r"[\r\n]", out.getvalue())]
    assert {state.partition(":")[0] for state in states if "%|" in state} == {"Stage 1, learn", "Stage 2, represent"}
    drawn = r"Stage 1, learn: +50%\|.*\| 3 of 6 steps, \d\d:\d\d left, loss=\d"
    assert any(re.match(drawn, state) for state in states)
    assert any("bottleneck gain=" in state for state in states)
    assert any(re.match(r"Stage 1, learn: \S+ seconds a step: another .* for 6 steps\.$", state) for state in states)
    ends = r"Stage 1, learn: 6 of 6 steps in \d+\.\d minutes, loss \d.*, bottleneck gain -?\d"
    assert any(re.match(ends, state) for state in states)
    assert "{" not in out.getvalue()  # as transformers prints its log


def test_without_a_terminal_there_are_lines(tiny_base, tmp_path, shown, capfd):
    model, out = new_model(tiny_base("llama")), shown(terminal=False)
    capfd.readouterr()
    train(model, tmp_path)
    assert "\r" not in out.getvalue()
    lines = out.getvalue().splitlines()
    assert any(re.match(r"Stage 2, represent: [345] of 6 steps, \d\d:\d\d left, loss=\d", line) for line in lines)
    assert all(re.match("Stage [12]|At most .* tokens are run at once", line) for line in lines)
    for title, texts in (
        ("Stage 1, learn", ("query: {}", "{}")),
        ("Stage 2, represent", ("query: {}", "document: the {}")),
    ):
        ids = [model.tokenizer(text.format(word))["input_ids"] for text in texts for word in WORDS]
        assert f"{title}: 6 steps of about {2 * sum(map(len, ids)) / len(WORDS):,.0f} tokens." in lines
    assert capfd.readouterr() == ("", "")


def test_a_minute_passes_between_two_lines(shown, monkeypatch):
    out = shown(terminal=False)
    monkeypatch.setattr(files, "BETWEEN_LINES", 60.0)
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with bar(None, "Work", "steps", total=400) as moved:
        for _ in range(100):
            now[0] += 2
            moved.update()
    times = [(30, "12:20"), (60, "11:20"), (90, "10:20")]
    assert out.getvalue().splitlines() == [f"Work: {done} of 400 steps, {left} left" for done, left in times]


def test_only_the_first_process_shows_a_bar(shown, monkeypatch):
    out = shown(terminal=True)
    monkeypatch.setenv("RANK", "1")
    assert list(bar(["a", "b"], "Work", "steps")) == ["a", "b"]
    assert out.getvalue() == ""


def test_texts_are_counted_while_they_are_encoded_as_ever(tiny_base, shown):
    model, out = new_model(tiny_base("llama")), shown(terminal=False)
    options = {"batch_size": 4, "show_progress_bar": False, "convert_to_tensor": True}
    plain = model.encode(WORDS, **options)
    with counted(model, len(WORDS), "Encoding"):
        assert torch.equal(model.encode(WORDS, **options), plain)
    assert [line.partition(",")[0] for line in out.getvalue().splitlines()] == [
        f"Encoding: {done} of 10 texts" for done in (0, 4, 8, 10)
    ]
    model.encode(WORDS, **options)
    assert len(out.getvalue().splitlines()) == 4


def test_mining_shows_nothing_but_its_own_bar(tiny_base, shown, capfd):
    model, out = new_model(tiny_base("llama")), shown(terminal=False)
    capfd.readouterr()
    pairs = Dataset.from_dict({"query": WORDS, "document": [f"the {word}" for word in WORDS]})
    with quiet_libraries():
        with_hard_negatives(model, pairs, 1)
    assert {line.partition(":")[0] for line in out.getvalue().splitlines()} == {"Hard negatives"}
    assert "Hard negatives: 20 of 20 texts" in out.getvalue()
    assert capfd.readouterr() == ("", "")


def test_other_libraries_bars_are_off_in_a_block_and_as_before_after_it():
    before = datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    with quiet_libraries():
        assert (datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()) == (True, False)
    assert (datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()) == before
