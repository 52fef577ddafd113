"""What a person can get wrong on the command line: one line that says what to do, and a traceback on request only."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lbr_st
from lbr_st.cli import exit_status, main
from lbr_st.publish.stock import release


@pytest.fixture(scope="module")
def made(tiny_base, tmp_path_factory):
    """A base and a model of each form; tests damage copies of them."""
    folder = tmp_path_factory.mktemp("made")
    base = tiny_base("llama")
    shutil.copytree(base, folder / "base")
    model = lbr_st.build_model(base, num_bottleneck_tokens=2, projection_dim=8, max_seq_length=24, device="cpu")
    model.save_pretrained(str(folder / "trained"))
    release(model, folder / "released")
    adapters = lbr_st.build_model(base, num_bottleneck_tokens=2, max_seq_length=24, lora_rank=2, device="cpu")
    adapters.save_pretrained(str(folder / "adapter"))
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A folder to work in, with data and copies of what was made."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "trained", "released", "adapter"):
        shutil.copytree(made / name, name)
    rows = [{"query": f"acid {i}", "document": f"the acid {i} of salt {i * 7}"} for i in range(8)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Path("beir/qrels").mkdir(parents=True)
    Path("beir/corpus.jsonl").write_text('{"_id": "d", "text": "an acid"}', encoding="utf-8")
    Path("beir/queries.jsonl").write_text('{"_id": "q", "text": "acid"}', encoding="utf-8")
    Path("beir/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n", encoding="utf-8")
    Path("a-file").write_text("no folder", encoding="utf-8")
    return tmp_path


def cut(file):
    """Leave the first half of a file."""
    content = Path(file).read_bytes()
    Path(file).write_bytes(content[: len(content) // 2])


def write(file, text):
    Path(file).write_text(text, encoding="utf-8")


def remove(file):
    Path(file).unlink()


TRAIN = [
    "train",
    "--output",
    "out",
    "--data.source",
    "pairs.jsonl",
    "--model.base",
    "base",
    "--evaluate.enabled",
    "false",
]
RECONSTRUCT = ["reconstruct", "trained", "water"]
RELEASE = ["release", "trained", "--output", "out"]
REPRESENT = ["represent", "trained", "--output", "out", "--data.source", "pairs.jsonl"]
ADAPTER = ["release", "adapter", "--output", "out"]
EVALUATE = ["evaluate", "released", "--suite", "beir"]
CHECK = ["check-contamination", "pairs.jsonl", "--against", "beir"]
SUBMISSION = ["submission", "released", "--org", "org"]
NEGATIVES = [*REPRESENT, "--represent.num_hard_negatives"]
EXPORT = ["export", "released", "--output", "out", "--python", sys.executable]


def other_weights(folder):
    """Keep the weights, under the names of another architecture."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(f"{folder}/model.safetensors")
    renamed = {f"{name.replace('proj', 'dense').replace('norm', 'ln')}.x": weight for name, weight in weights.items()}
    save_file(renamed, f"{folder}/model.safetensors", metadata={"format": "pt"})


def judgements():
    shutil.rmtree("beir/qrels")
    write("beir/qrels", "x")


def case(name, words, does=lambda: None, says="", status=1):
    return pytest.param(words, does, says, status, id=name)


def results(content):
    Path("results/per_query").mkdir(parents=True)
    write("results/per_query/x.json", content)


CASES = [
    # Models that are damaged, or of the wrong form.
    case("cut weights", RECONSTRUCT, lambda: cut("trained/model.safetensors"), "trained: the model cannot be loaded"),
    case(
        "cut adapter", ADAPTER, lambda: cut("adapter/adapter_model.safetensors"), "adapter: the model cannot be loaded"
    ),
    case("cut release", EVALUATE, lambda: cut("released/model.safetensors"), "released: the model cannot be loaded"),
    case("no weights", RECONSTRUCT, lambda: remove("trained/model.safetensors"), "no file named model.safetensors"),
    case("no config", EVALUATE, lambda: remove("released/config.json"), "released: the model cannot be loaded"),
    case("cut modules", EXPORT, lambda: cut("released/modules.json"), "released/modules.json: cannot be read"),
    case(
        "odd modules for a submission",
        SUBMISSION,
        lambda: write("released/modules.json", "[1]"),
        "a module without a type",
    ),
    case("no modules", RECONSTRUCT, lambda: remove("trained/modules.json"), "it has no modules.json"),
    case("no folder", RECONSTRUCT, lambda: shutil.rmtree("trained"), "trained: there is no such folder."),
    case("no model to export", ["export", "a-file", "--output", "out"], says="a-file: there is no such folder."),
    case("adapter without its base", [*ADAPTER, "--base", "a-file"], says="a-file: no such folder."),
    case("released, to represent", ["represent", "released", *REPRESENT[2:]], says="released: not in training form"),
    case("released, to release", ["release", "released", "--output", "out"], says="released: not in training form"),
    case("released, to decode", ["reconstruct", "released", "water"], says="released: not in training form"),
    case("trained, to export", ["export", "trained", "--output", "out"], says="trained: not a released model"),
    case("trained, to submit", ["submission", "trained", "--org", "org"], says="trained: is in training form"),
    case(
        "weights of another model",
        RECONSTRUCT,
        lambda: other_weights("trained"),
        "trained: 21 of its weights are missing, such as ",
    ),
    # Bases, and what is on the hub while that is off.
    case("cut base", TRAIN, lambda: cut("base/model.safetensors"), "base: the base cannot be loaded"),
    case("base that is a file", [*TRAIN, "--model.base", "./a-file"], says="./a-file: no such folder."),
    case(
        "base of the hub", [*TRAIN, "--model.base", "no-one/nothing"], says="no-one/nothing: the base cannot be loaded"
    ),
    case(
        "model of the hub",
        ["evaluate", "no-one/nothing", "--suite", "beir"],
        says="no-one/nothing: the model cannot be",
    ),
    case("data of the hub", [*TRAIN, "--data.source", "no-one/nothing"], says="no-one/nothing: cannot load it"),
    case("task of the hub", ["evaluate", "released", "--suite", "SciFact"], says="SciFact: 1 of 1 tasks failed."),
    # Where to write.
    case("train below a file", [*TRAIN, "--output", "a-file/out"], says="a-file"),
    case("release below a file", [*RELEASE, "--output", "a-file/out"], says="a-file"),
    case("scores below a file", [*EVALUATE, "--output", "a-file/out"], says="a-file"),
    case("report below a file", [*CHECK, "--output", "a-file"], says="a-file"),
    case("a file as work folder", [*TRAIN, "--work-folder", "a-file"], says="a-file"),
    case("release to a file", [*RELEASE, "--output", "a-file"], says="a-file: the output already exists."),
    case("output without a name", [*TRAIN, "--output", "."], says=".: an output must have a name of its own."),
    case("stage without a name", ["learn", *TRAIN[1:-2], "--output", ".."], says="..: an output must have a name"),
    # Data, results and recipes.
    case("data that is a folder", [*TRAIN, "--data.source", "base"], says="base: no corpus.jsonl in this folder."),
    case(
        "data that is no parquet",
        [*TRAIN, "--data.source", "x.parquet"],
        lambda: write("x.parquet", "x"),
        "cannot load it",
    ),
    case("data below a file", [*TRAIN, "--data.source", "a-file/x.jsonl"], says="a-file/x.jsonl: no such file."),
    case("cut data", CHECK, lambda: cut("beir/corpus.jsonl"), "beir/corpus.jsonl, line 1: not JSON"),
    case("judgements that are a file", EVALUATE, judgements, "beir/qrels: no split 'test'"),
    case(
        "calibration that is a folder",
        [*EXPORT, "--precision", "int8", "--calibration", "base"],
        says="base: no such file.",
    ),
    case("foreign results", ["compare", "a", "b"], lambda: results("[1]"), "results: there are no results here."),
    case("foreign results to plot", ["plot"], lambda: results('{"format": 1}'), "nothing could be plotted"),
    case(
        "foreign results for a card",
        ["card", "released", "--results", "a-file"],
        says="a-file: cannot be read as results",
    ),
    case("card that is a folder", ["card", "README.md"], lambda: Path("README.md").mkdir(), "there is no card here"),
    case("no recipe", [*TRAIN, "--config", "none.yaml"], says="none.yaml: cannot be used: No such file or directory."),
    case("recipe that is a folder", [*TRAIN, "--config", "base"], says="base: cannot be used: Is a directory."),
    case(
        "recipe that is no text",
        [*TRAIN, "--config", "r.yaml"],
        lambda: Path("r.yaml").write_bytes(b"\xff"),
        "r.yaml: is not valid YAML",
    ),
    case("no interpreter", [*EXPORT[:-1], "none"], says="none: cannot be run: No such file or directory."),
    case("more negatives than can be", [*NEGATIVES, "1000"], says="num_hard_negatives: 1000 cannot be found for each"),
    case("more negatives than pairs", [*NEGATIVES, "9"], says="num_hard_negatives: no query has 9 near misses"),
    case("longer than the base", [*TRAIN, "--model.max_seq_length", "999"], says="999 is more than the 512 tokens"),
    case(
        "nothing to decode", [*RECONSTRUCT, "--max-new-tokens", "0"], says="max_new_tokens: must be at least 1, not 0."
    ),
    # How the command is called.
    case("--config without a file", [*TRAIN, "--config"], says="--config: expected one argument", status=2),
    case("nothing for a model", ["evaluate", "", "--suite", "beir"], says="MODEL must not be empty.", status=2),
    case("nothing for a suite", ["evaluate", "released", "--suite", ""], says="--suite must not be empty.", status=2),
    case("a choice", ["launch-config", "x"], says="kind: must be one of ddp, fsdp2, not x.", status=2),
    case(
        "a choice or none", [*EVALUATE, "--only", "x"], says="only: must be one of local, hub or null, not x.", status=2
    ),
    case("a number", ["compare", "a", "b", "--resamples", "x"], says="must be a whole number, not x.", status=2),
]


@pytest.mark.parametrize(("words", "does", "says", "status"), CASES)
def test_one_line_and_no_traceback(here, capfd, words, does, says, status):
    does()
    assert main(words) == status
    shown = capfd.readouterr().err
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in shown
    assert main([*words, "--debug"]) == status
    assert "Traceback" in capfd.readouterr().err


def wrapped(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            IsADirectoryError(21, "Is a directory", "out/scores.json"),
            "out/scores.json: cannot be used: Is a directory.",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full."),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out"), "out: the disk is full."),
        (OSError(errno.EROFS, "Read-only file system", "out"), "out: cannot be used: Read-only file system."),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full."),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"), "the disk is full."),
        (wrapped(ValueError("dataset"), OSError(errno.ENOSPC, "No space", "out/x.arrow")), "out/x.arrow: the disk is"),
        (wrapped(ValueError("dataset"), PermissionError(errno.EACCES, "Permission denied", "out")), "out: cannot be"),
        (MemoryError(), "out of memory: RAM. Lower"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out of memory: "),
        (BrokenPipeError(32, "Broken pipe"), "standard output: nothing reads the output any more."),
    ],
)
def test_what_the_machine_refuses(capsys, error, says):
    def fail():
        raise error

    assert exit_status(fail) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {says}")
    assert len(shown.splitlines()) == 1
    assert exit_status(fail, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), TypeError("no"), OSError("of no file")], ids=repr)
def test_a_defect_of_ours_keeps_its_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        exit_status(fail)


def test_interrupted_by_ctrl_c_and_by_a_scheduler(capsys):
    def ctrl_c():
        raise KeyboardInterrupt

    def scheduler():
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert exit_status(ctrl_c) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to continue.\n"
    assert exit_status(scheduler) == 130
    assert capsys.readouterr().err == "interrupted: by SIGTERM; run the same command again to continue.\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_goes_away_sees_no_traceback():
    read, write_end = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "lbr_st", "--help"]
    done = subprocess.run(words, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_help_tells_the_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Exit status: 0 all went well, 1 an error to fix, 2 wrong usage, 130 interrupted." in capsys.readouterr().out


def test_an_error_reads_as_sentences_and_keeps_its_parts():
    error = lbr_st.LBRError("cannot be loaded: no such key", where="model", fix="Save it again.")
    assert str(error) == "model: cannot be loaded: no such key. Save it again."
    outer = error.within("r.yaml")
    assert (outer.what, outer.where, outer.fix) == (error.what, "r.yaml: model", error.fix)
    assert lbr_st.LBRError("is empty.").within("r.yaml").where == "r.yaml"
    again = pickle.loads(pickle.dumps(outer))
    assert (str(again), again.where, type(again)) == (str(outer), outer.where, lbr_st.LBRError)
