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
from lbr_st.cli import main
from lbr_st.errors import exit_status
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


TRAIN = "train --output out --data.source pairs.jsonl --model.base base --evaluate.enabled false"
RECONSTRUCT = "reconstruct trained water"
REPRESENT = "represent trained --output out --data.source pairs.jsonl"
EVALUATE = "evaluate released --suite beir"
EXPORT = f"export released --output out --python {sys.executable}"


def other_weights(folder):
    """Keep the weights, under the names of another architecture."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(f"{folder}/model.safetensors")
    renamed = {f"{name.replace('proj', 'dense').replace('norm', 'ln')}.x": weight for name, weight in weights.items()}
    save_file(renamed, f"{folder}/model.safetensors", metadata={"format": "pt"})


def case(words, says, does=lambda: None, status=1):
    return pytest.param(words, says, does, status, id=says)


def results(content):
    Path("results/per_query").mkdir(parents=True)
    write("results/per_query/x.json", content)


CASES = [
    # Models that are damaged, or of the wrong form.
    case(RECONSTRUCT, "trained: the model cannot be loaded", lambda: cut("trained/model.safetensors")),
    case("release adapter --output out", "adapter: the model", lambda: cut("adapter/adapter_model.safetensors")),
    case("release adapter --output out --base a-file", "a-file: no such folder."),
    case(RECONSTRUCT, "no file named model.safetensors", lambda: remove("trained/model.safetensors")),
    case(RECONSTRUCT, "trained: 21 of its weights are missing, such as ", lambda: other_weights("trained")),
    case(RECONSTRUCT, "it has no modules.json", lambda: remove("trained/modules.json")),
    case(EXPORT, "released/modules.json: cannot be read", lambda: cut("released/modules.json")),
    case("submission released --org o", "a module has no type", lambda: write("released/modules.json", "[1]")),
    case("release released --output out", "released: not in training form"),
    case("export trained --output out", "trained: not a released model"),
    # Bases, and what is on the hub while that is off.
    case(TRAIN, "base: the base cannot be loaded", lambda: cut("base/model.safetensors")),
    case(f"{TRAIN} --model.base no-one/nothing", "no-one/nothing: the base cannot be loaded"),
    case(f"{TRAIN} --model.max_seq_length 999", "999 is more than the 512 tokens"),
    case("evaluate no-one/nothing --suite beir", "no-one/nothing: the model cannot be"),
    case(f"{TRAIN} --data.source no-one/nothing", "no-one/nothing: cannot load it"),
    case("evaluate released --suite SciFact", "SciFact: 1 of 1 tasks failed."),
    # Where to write.
    case("release trained --output a-file/out", "a-file: cannot be used: "),
    case("release trained --output a-file", "a-file: the output already exists."),
    case(f"{TRAIN} --output .", ".: an output must have a name of its own."),
    # Data, results and recipes.
    case(f"{TRAIN} --data.source base", "base: no text could be read; skipped"),
    case(f"{TRAIN} --data.source x.parquet", "cannot load it", lambda: write("x.parquet", "x")),
    case(EVALUATE, "beir/corpus.jsonl, line 1: not JSON", lambda: cut("beir/corpus.jsonl")),
    case(EVALUATE, "beir/qrels: no split 'test'", lambda: remove("beir/qrels/test.tsv")),
    case(f"{EXPORT} --precision int8 --calibration base", "base: no corpus.jsonl in this folder."),
    case("compare a b", "results: there are no results here.", lambda: results("[1]")),
    case("plot", "nothing could be plotted", lambda: results('{"format": 1}')),
    case("card released --results a-file", "a-file: cannot be read as results"),
    case("card README.md", "there is no card here", lambda: Path("README.md").mkdir()),
    case(f"{TRAIN} --config none.yaml", "none.yaml: cannot be used: No such file or directory."),
    case(f"{EXPORT}-none", "-none: cannot be used: No such file or directory."),
    case(f"{REPRESENT} --represent.num_hard_negatives 1000", "num_hard_negatives: 1000 cannot be found for each"),
    # How the command is called.
    case(["evaluate", "", "--suite", "beir"], "MODEL must not be empty.", status=2),
    case("launch-config x", "kind: must be one of ddp, fsdp2, not x.", status=2),
]


@pytest.mark.parametrize(("words", "says", "does", "status"), CASES)
def test_one_line_and_no_traceback(here, capfd, words, says, does, status):
    words = words.split() if isinstance(words, str) else words
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
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full."),
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


def test_an_error_reads_as_sentences_and_keeps_its_parts():
    error = lbr_st.LBRError("cannot be loaded: no such key", where="model", fix="Save it again.")
    assert str(error) == "model: cannot be loaded: no such key. Save it again."
    outer = error.within("r.yaml")
    assert (outer.what, outer.where, outer.fix) == (error.what, "r.yaml: model", error.fix)
    assert lbr_st.LBRError("is empty.").within("r.yaml").where == "r.yaml"
    again = pickle.loads(pickle.dumps(outer))
    assert (str(again), again.where, type(again)) == (str(outer), outer.where, lbr_st.LBRError)
