"""Exports: the environment that is made once, the worker's questions and answers, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.evaluation.systems import encode_probes
from lbr_st.model.build import build_model
from lbr_st.publish import export
from lbr_st.publish import export_worker as worker
from lbr_st.publish.export import (
    BACKENDS,
    LEAST,
    NUM_TEXTS,
    Export,
    Parity,
    ask,
    calibration_texts,
    check,
    export_model,
)
from lbr_st.publish.stock import release

# Answers as the real worker does, with the embeddings it was given, shaken by NOISE where the export is asked.
STAND_IN = """
import json, pathlib, sys
import numpy as np
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
do, answer = request["do"], {}
if do == "versions":
    answer = {"python": "3.11.0", "torch": "2.13.0+cpu", "transformers": "5.5.4", "optimum-intel": "2.2.0"}
elif do == "export":
    if FAIL:
        sys.exit("RuntimeError: out of luck")
    output = pathlib.Path(request["output"])
    assert not any(output.iterdir())
    (output / "calibration.json").write_text(json.dumps(request["calibration"]))
else:
    rows = np.load(REFERENCE)
    noise = TORCH_NOISE if request["backend"] == "torch" else NOISE
    rows = rows + noise * np.random.default_rng(0).standard_normal(rows.shape)
    np.save(request["embeddings"], rows.astype("float32"))
    answer = {"computes_in": "f32"}
pathlib.Path(request["answer"]).write_text(json.dumps(answer))
"""


@pytest.fixture(scope="session")
def released(tiny_base, tmp_path_factory):
    """A tiny release."""
    folder = tmp_path_factory.mktemp("released") / "tiny"
    release(build_model(tiny_base("llama"), max_seq_length=24, lora_rank=2), folder)
    return folder


@pytest.fixture
def stand_in(released, tmp_path, monkeypatch):
    """Put the stand-in in the worker's place; ``stand_in(noise=..., torch_noise=..., fail=...)`` says how it errs."""
    reference = tmp_path / "reference.npy"
    np.save(reference, encode_probes(SentenceTransformer(str(released), device="cpu")))
    script = tmp_path / "stand_in.py"

    def make(*, noise="0.0", torch_noise="0.0", fail=False):
        header = f"REFERENCE, NOISE, TORCH_NOISE, FAIL = {str(reference)!r}, {noise}, {torch_noise}, {fail}\n"
        script.write_text(header + STAND_IN)
        monkeypatch.setattr(export, "WORKER", script)
        return sys.executable

    return make


def left_in(tmp_path):
    return sorted(item.name for item in tmp_path.iterdir() if item.name not in ("reference.npy", "stand_in.py"))


def test_an_export_that_agrees_is_written_with_its_card(released, stand_in, tmp_path):
    made = export_model(released, tmp_path / "out", python=stand_in())
    assert (made.backend, made.precision, made.computes_in) == ("openvino", "float32", "f32")
    assert made.parity.lowest == pytest.approx(1.0)
    assert left_in(tmp_path) == ["out"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---")  # the release's own, with its metadata in front
    for part in ('backend="openvino"', "lowest 1.000000", "optimum-intel 2.2.0", "lowest 0.999"):
        assert part in card
    assert card.index("export for OpenVINO") < card.index("How it was trained")
    pins = (tmp_path / "out" / "requirements.txt").read_text().splitlines()
    assert pins == ["torch==2.13.0", "transformers==5.5.4", "optimum-intel[openvino]==2.2.0"]
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path) not in file.read_text(encoding="utf-8")
        assert str(released) not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("precision", "errs", "message"),
    [
        ("float32", {"noise": "0.05"}, "differs from the release"),
        ("int8", {"noise": "1.0"}, "--precision float32"),
        ("float32", {"noise": "float('nan')"}, "lowest cosine nan"),
        # The environment agrees with itself: what counts are the embeddings of this one.
        ("float32", {"noise": "0.05", "torch_noise": "0.05"}, r"torch with transformers 5\.5\.4: differs"),
        ("float32", {"fail": True}, r"openvino: the worker failed \(export\): RuntimeError: out of luck"),
    ],
)
def test_an_export_that_differs_or_fails_is_refused_and_leaves_nothing(
    released, stand_in, tmp_path, precision, errs, message
):
    with pytest.raises(LBRError, match=message):
        export_model(released, tmp_path / "out", precision=precision, python=stand_in(**errs))
    assert left_in(tmp_path) == []


def test_a_killed_worker_is_named(tmp_path, monkeypatch):
    script = tmp_path / "dies.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(export, "WORKER", script)
    with pytest.raises(LBRError, match="exit status -9"):
        ask(Path(sys.executable), "versions", "onnx")


def test_int8_is_calibrated(released, stand_in, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(200)))
    made = export_model(released, tmp_path / "out", precision="int8", calibration=file, python=stand_in(noise="0.01"))
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == [f"text {n}" for n in range(NUM_TEXTS)]
    assert made.calibration == "128 texts, of texts.jsonl"
    assert 0.9 < made.parity.lowest < 1
    export_model(released, tmp_path / "out2", precision="int8", python=stand_in())
    assert len(json.loads((tmp_path / "out2" / "calibration.json").read_text())) == NUM_TEXTS
    file.write_text('{"text": "one"}\n')
    with pytest.raises(LBRError, match="1 texts are too few"):
        calibration_texts(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "already exists"),
        ({"backend": "tensorrt"}, "no backend 'tensorrt'.*openvino"),
        ({"precision": "int4"}, "no precision 'int4'.*float32"),
        ({"backend": "onnx", "precision": "int8", "calibration": "texts.jsonl"}, "takes no calibration texts"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_runs(released, tmp_path, options, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(LBRError, match=message):
        export_model(released, tmp_path / "out", python="/no/python", **options)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"


def test_what_is_no_release_is_refused(tiny_base, released, tmp_path):
    model = build_model(tiny_base("llama"), lora_rank=2)
    model.save_pretrained(str(tmp_path / "training"), create_model_card=False)
    worker.copy_release(released, tmp_path / "exported", weights=False)
    for folder, said in (("training", "Release it first"), ("exported", "An export cannot be exported again")):
        with pytest.raises(LBRError, match=said):
            export_model(tmp_path / folder, tmp_path / "out")


def test_the_command_line(released, monkeypatch, capsys):
    seen = {}

    def stand_in(model, output, **options):
        seen.update(options, model=model, output=output)
        return Export("onnx", "int8", "float32", Parity(0.97, 0.98), Parity(1.0, 1.0), {"torch": "2"})

    monkeypatch.setattr(export, "export_model", stand_in)
    options = {"backend": "onnx", "precision": "int8", "output": "out", "python": "p"}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    assert main(["export", str(released), *words, "--overwrite"]) == 0
    assert seen == {"model": str(released), **options, "calibration": None, "overwrite": True}
    assert "lowest 0.970000, mean 0.980000" in capsys.readouterr().out
    assert main(["export", "model", "--output", "out", "--backend", "tensorrt"]) == 2


def test_the_bounds():
    rows = np.eye(4, dtype=np.float32)
    assert check(rows, 2 * rows, "float32", "x") == Parity(1.0, 1.0)
    with pytest.raises(LBRError, match="shape"):
        check(rows, rows[:2], "float32", "x")
    # Three good texts do not make up for a bad one.
    bad = rows.copy()
    bad[3] = [0, 0, 1, 1]
    with pytest.raises(LBRError, match=r"lowest cosine 0\.7071"):
        check(rows, bad, "int8", "x")
    assert LEAST["float32"].lowest == 0.999


@pytest.fixture
def fake_pip(monkeypatch, tmp_path):
    """``venv`` and ``pip`` that only leave a file; of ``commands`` run so far, those with a word in ``fail`` failed."""
    fake = SimpleNamespace(commands=[], fail=set())

    def run(command):
        fake.commands.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir()
            (Path(command[-1]) / "bin" / "python").touch()
        if fail := fake.fail.intersection(command):
            raise LBRError(f"{fail} failed")

    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(export, "_run", run)
    return fake


def made_in(tmp_path):
    place = tmp_path / "cache" / "environments"
    return sorted(item.name for item in place.iterdir())


def test_an_environment_is_made_once_under_the_hash_of_its_list(fake_pip, monkeypatch, tmp_path):
    python = export.environment("openvino")
    assert export.environment("openvino") == python
    verbs = [next(verb for verb in ("venv", "uninstall", "install") if verb in words) for words in fake_pip.commands]
    assert verbs == ["venv", "install", "uninstall"]
    # What a killed process left is removed.
    left = python.parents[2] / f".{python.parents[1].name}.abc.partial"
    python.parents[1].rename(left)
    assert export.environment("openvino") == python
    assert not left.exists()
    monkeypatch.setattr(export, "requirements", lambda backend: "other==1\n")
    assert export.environment("openvino") != python
    assert len(made_in(tmp_path)) == 2


@pytest.mark.parametrize("command", ["venv", "install", "uninstall"])
def test_a_half_made_environment_is_removed(fake_pip, tmp_path, command):
    fake_pip.fail.add(command)
    with pytest.raises(LBRError):
        export.environment("openvino")
    assert made_in(tmp_path) == []


@pytest.mark.slow
def test_an_empty_list_makes_a_real_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(export, "requirements", lambda backend: "# nothing\n")
    python = export.environment("onnx")
    shown = subprocess.run([str(python), "-I", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert Path(shown.stdout.strip()) == python.parent.parent
    assert len(made_in(tmp_path)) == 1
    with pytest.raises(LBRError, match=r"requirements-onnx\.txt") as caught:
        ask(python, "versions", "onnx")
    assert "ModuleNotFoundError" in str(caught.value)


def test_the_lists_are_pinned_and_come_with_the_package():
    for backend in BACKENDS:
        lines = [line for line in export.requirements(backend).splitlines() if not line.startswith("#")]
        assert all("==" in line for line in lines)
        assert lines[0].startswith("torch==")


def test_a_copy_is_in_float32_and_embeds_alike(released, tmp_path):
    config = json.loads((released / "config.json").read_text())
    half = tmp_path / "half"
    worker.copy_release(released, half, weights=True)
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    worker.copy_release(half, tmp_path / "copy", weights=True)
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == config
    copied, stock = (SentenceTransformer(str(folder), device="cpu") for folder in (tmp_path / "copy", released))
    np.testing.assert_allclose(encode_probes(copied), encode_probes(stock), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", LEAST)
def test_the_real_worker(tiny_base, tmp_path, backend, precision):
    """Needs an environment: LBR_ST_OPENVINO_PYTHON and LBR_ST_ONNX_PYTHON name interpreters."""
    python = os.environ.get(f"LBR_ST_{backend.upper()}_PYTHON")
    if not python:
        pytest.skip(f"LBR_ST_{backend.upper()}_PYTHON names no interpreter")
    released = tmp_path / "released"
    release(build_model(tiny_base("llama"), max_seq_length=24, lora_rank=2, projection_dim=8), released)
    made = export_model(released, tmp_path / "out", backend=backend, precision=precision, python=python)
    assert made.computes_in in ("f32", "float32")
    assert (tmp_path / "out" / backend).is_dir()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(tmp_path).encode() not in content, file
            assert b"site-packages" not in content, file
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "released"]
