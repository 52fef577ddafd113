"""The command line: what it passes on, its help, and its exit codes."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import lbr_st
from lbr_st.cli import _parse, main
from lbr_st.commands import COMMANDS
from lbr_st.errors import LBRError
from lbr_st.files import command_line
from lbr_st.recipe import Recipe, field_types, save_recipe
from lbr_st.recipe_sections import MATTER_MOST


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the modules behind the commands; each call is recorded."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lbr-st", "a", "b c"])

    def recorder(name):
        return lambda *args, **kwargs: seen.append((name, args, kwargs))

    pipeline = {name: recorder(name) for name in ("run", "run_learn", "run_represent", "run_evaluate")}
    monkeypatch.setitem(sys.modules, "lbr_st.pipeline", SimpleNamespace(**pipeline))
    monkeypatch.setitem(sys.modules, "lbr_st.publish.stock", SimpleNamespace(release=recorder("release")))
    monkeypatch.setitem(sys.modules, "lbr_st.bottleneck.reconstruct", SimpleNamespace(main=recorder("reconstruct")))
    return seen


def test_train(calls):
    assert main(["train", "--output", "out", "--learn.max_steps", "50", "--overwrite"]) == 0
    recipe = Recipe()
    recipe.learn.max_steps = 50
    assert calls == [("run", (recipe, "out"), {"overwrite": True, "work_folder": None, "command": "lbr-st a 'b c'"})]


def test_the_other_commands(calls):
    for words in (
        "learn --output out",
        "represent --output out",
        "represent model --output out --overwrite",
        "release model --output out --adapter-only",
        "reconstruct model water null 1 --max_new_tokens=8",  # the older spelling
        "evaluate model --output out --evaluate.num_queries 5",
    ):
        assert main(words.split()) == 0
    evaluated = Recipe()
    evaluated.evaluate.num_queries = 5
    plain = {"harness": "mteb", "dimensions": (), "name": None, "revision": None}
    assert calls == [
        ("run_learn", (Recipe(), "out"), {"overwrite": False}),
        ("run_represent", (Recipe(), None, "out"), {"overwrite": False}),
        ("run_represent", (Recipe(), "model", "out"), {"overwrite": True}),
        (
            "release",
            ("model", "out"),
            {"adapter_only": True, "overwrite": False, **dict.fromkeys(("base", "scale", "license"))},
        ),
        ("reconstruct", ("model", ["water", "null", "1"], 8), {}),
        ("run_evaluate", ("model", evaluated, "out"), {"command": "lbr-st a 'b c'", **plain}),
    ]


@pytest.mark.parametrize("config_first", [True, False])
def test_command_line_beats_file_beats_default(calls, tmp_path, config_first):
    recipe = Recipe(name="1")
    recipe.learn.max_steps, recipe.learn.batch_size, recipe.learn.pairs = 7, 8, ["continue"]
    recipe.data.texts, recipe.represent.max_steps = "more.jsonl", 9
    save_recipe(recipe, tmp_path / "r.yaml")
    config, flag = ["--config", str(tmp_path / "r.yaml")], ["--learn.max_steps", "50"]
    words = [*config, *flag] if config_first else [*flag, *config]
    # `learn` has no --represent flags; what the file says there still holds.
    assert main(["learn", "--output", "out", *words]) == 0
    recipe.learn.max_steps = 50
    assert calls[0][1][0] == recipe


@pytest.mark.parametrize("words", [["--represent.replay_weight", "0.1"], ["--represent.replay_weight=0.1"]])
def test_a_retired_flag_is_ignored_with_one_notice(calls, capsys, words):
    assert main(["train", *words, "--output", "out", "--learn.nll_kernel", "liger", "--name", "mine"]) == 0
    assert calls[0][1] == (Recipe(name="mine"), "out")
    [notice] = capsys.readouterr().err.splitlines()
    assert all(part in notice for part in ("represent.replay_weight", "learn.nll_kernel", "ignored"))


def test_lists_and_null():
    words = ["--learn.pairs", "[natural,continue]", "--learn.max_target_tokens", "null", "--name", "1"]
    recipe = _parse(["train", "--output", "out", *words])[1]["recipe"]
    assert (recipe.learn.pairs, recipe.learn.max_target_tokens) == (["natural", "continue"], None)
    assert recipe.name == "1"
    for words in (["eng-Latn", "deu-Latn"], ["[eng-Latn,", "deu-Latn]"], ["[eng-Latn,deu-Latn]"]):
        given = _parse(["submission", "m", "--org", "o", "--languages", *words])[1]
        assert given["languages"] == ["eng-Latn", "deu-Latn"]
    assert _parse(["submission", "m", "--org", "o", "--training_datasets=[]"])[1]["training_datasets"] == []
    assert _parse(["reconstruct", "m", "[1]benzopyran"])[1]["text"] == ["[1]benzopyran"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command must be given"),
        (["trian"], "'trian' is no command. Did you mean train?"),
        (["train"], "--output must be given"),
        (["release", "--output", "x"], "MODEL must be given"),
        (["reconstruct", "model"], "TEXT must be given"),
        (["train", "--output"], "expected one argument"),
        (["train", "--output", "x", "--learn.steps", "3"], "--learn.steps. Did you mean --learn.max_steps?"),
        (
            ["train", "--output", "x", "--model", "y"],
            "unknown flag --model. Its fields are flags, such as --model.base.",
        ),
        (["learn", "--output", "x", "--represent.max_steps", "3"], "unknown flag --represent.max_steps"),
        (["train", "--output", "x", "--learn.warmup_steps", "x"], "learn.warmup_steps: must be a whole number, not x."),
        (
            ["train", "--output", "x", "--learn.warmup_steps", "null"],
            "learn.warmup_steps: must be a whole number, not None.",
        ),
        (["train", "--output", "x", "--learn.pairs", "natural"], "learn.pairs: must be a list"),
        (["train", "--output", "x", "--precision", "fp16"], "precision"),
    ],
)
def test_usage_errors_exit_2(calls, capsys, words, message):
    assert main(words) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("error: ")
    assert len(output.err.splitlines()) == 2
    assert "--help" in output.err.splitlines()[1]
    assert not output.out
    assert not calls


def test_user_errors_exit_1(calls, capsys, monkeypatch, tmp_path):
    assert main(["train", "--output", "x", "--learn.warmup_steps", "-1"]) == 1
    assert capsys.readouterr().err == "error: learn.warmup_steps: must be at least 0, not -1.\n"
    (tmp_path / "r.yaml").write_text("sead: 1")
    assert main(["train", "--output", "x", "--config", str(tmp_path / "r.yaml")]) == 1
    assert "unknown key sead. Did you mean seed?" in capsys.readouterr().err
    assert not calls

    def fail(*args, **kwargs):
        raise LBRError("the output already exists.", where="out")

    monkeypatch.setattr(sys.modules["lbr_st.publish.stock"], "release", fail)
    assert main(["release", "model", "--output", "out"]) == 1
    assert capsys.readouterr().err == "error: out: the output already exists.\n"
    assert main(["release", "model", "--output", "out", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_exits_130(calls, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["lbr_st.pipeline"], "run", interrupt)
    assert main(["train", "--output", "x"]) == 130
    error = capsys.readouterr().err
    assert "run the same command again to continue" in error
    assert len(error.splitlines()) == 1


def help_of(capsys, *words, flag="--help"):
    with pytest.raises(SystemExit) as caught:
        main([*words, flag])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands_and_old_names_still_work(capsys):
    assert help_of(capsys, "pack") == help_of(capsys, "bundle")
    shown = help_of(capsys)
    for name, command in COMMANDS.items():
        assert f"{name} {command.run.__doc__.partition(chr(10))[0]}" in " ".join(shown.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help(capsys, calls, name):
    shown = help_of(capsys, name)
    command = COMMANDS[name]
    assert shown.startswith(f"usage: lbr-st {name} ")
    assert f"\n  {command.example}\n" in shown
    assert command.run.__doc__.partition("\n")[0] in shown
    assert "--debug" in shown
    # The example must be one that works.
    called = command.example.partition("lbr-st ")[2].partition(")")[0]
    words = called.replace('"', "").replace("--config recipe.yaml ", "").split()
    assert _parse(words)[0] == name
    if name in ("train", "learn", "represent", "release", "reconstruct"):
        assert main(words) == 0


def test_a_baseline_is_the_recipe_with_its_changes(calls):
    assert main(["train", "--output", "out", "--baseline", "contrastive-only", "--name", "mine"]) == 0
    [(_, (recipe, _), _)] = calls
    assert (recipe.name, recipe.learn.enabled) == ("mine-contrastive-only", False)
    assert main(["train", "--output", "out", "--baseline", "nothing"]) == 2


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/x/lbr_st/__main__.py", "train"], "lbr-st train"),
        (["recipes/chem.py", "--quick"], "python recipes/chem.py --quick"),
        (["/x/recipes/chem.py", "--output", "/home/me/out"], "python recipes/chem.py --output out"),
        (["lbr-st", "evaluate", "--output=/home/me/out", "~/m"], "lbr-st evaluate --output=out m"),
    ],
)
def test_the_command_line_as_typed(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == expected


def test_every_field_has_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    lines = help_of(capsys, "train", flag="--help-all").splitlines()
    for key in field_types():
        start = next(index for index, line in enumerate(lines) if re.match(rf" *--{key}[ ,]", line))
        assert ". (type: " in " ".join(lines[start : start + 2]), key


def test_help_lists_the_settings_that_matter_and_help_all_the_rest(capsys):
    def fields(name, flag):
        return set(re.findall(r"^  --([\w.]+)", help_of(capsys, name, flag=flag), re.M)) & field_types().keys()

    assert len(MATTER_MOST) == 12
    for name in ("train", "init"):
        assert fields(name, "--help") == set(MATTER_MOST)
        assert fields(name, "--help-all") == field_types().keys()
    assert fields("learn", "--help") == {key for key in MATTER_MOST if not key.startswith(("represent.", "evaluate."))}
    shown = fields("evaluate", "--help")
    assert {"data.source", "data.query_column", "evaluate.num_queries"} < shown
    assert not shown & {"seed", "max_hours", "data.make_pairs", "data.contamination", "data.also", "evaluate.beside"}
    assert "data.contamination" in fields("evaluate", "--help-all")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = f"""
import sys
from lbr_st.cli import main
try:
    main({words!r})
except SystemExit as done:
    assert done.code == 0
heavy = {{"torch", "transformers", "sentence_transformers", "datasets", "mteb"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "lbr_st", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"lbr-st {lbr_st.__version__}\n")
