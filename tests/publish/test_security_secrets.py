"""Nothing of the machine, the user or an account is in what travels: the release, its card, scores and logs."""

import getpass
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from lbr_st import pipeline
from lbr_st.files import command_line, without_place
from lbr_st.publish.stock import release
from lbr_st.recipe import PLACES, DataConfig, EvaluateConfig, load_recipe

TOKEN = "hf_TeLLtaleTokenOfTheTrainer0123456789"
USER = "telltaleuser"
HOST = "telltalehost"
PLACE = "telltaleplace"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose every name is told apart from ordinary text; returns a folder on it."""
    home = tmp_path / "home" / USER
    place = home / PLACE
    place.mkdir(parents=True)
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "LBR_ST_CACHE", "TMPDIR"):
        monkeypatch.setenv(name, str(home if name == "HOME" else home / name.lower()))
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr("platform.node", lambda: HOST)
    (home / "tmpdir").mkdir()
    assert getpass.getuser() == USER
    return place


def telltales(machine, tmp_path):
    real = {str(Path(__file__).parents[2]), os.uname().nodename}
    long = {word for word in real if len(word) > 5}  # shorter ones stand in any picture
    return {str(tmp_path), str(machine), PLACE, USER, HOST, TOKEN, "pytest-of", *long}


def found(folders, words):
    """Return every file that holds a telltale word, with the word."""
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    assert len(files) > 5
    return [
        (str(file), word)
        for file in files
        for word in sorted(words)
        if word.encode() in file.read_bytes() or word in file.name
    ]


@pytest.fixture
def toy(machine, toy_recipe, bert):
    """A recipe that names everything by its absolute path."""
    pairs = [{"query": f"acid {i}", "document": f"the acid of class {i} is a salt {i * 7}"} for i in range(84)]
    texts = [{"text": f"an ester of class {i}"} for i in range(9)]
    for name, rows in (("pairs", pairs), ("texts", texts)):
        (machine / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = load_recipe(toy_recipe)
    (machine / "my-base").symlink_to(recipe.model.base)
    bert().save(str(machine / "general"))
    recipe.model.base = str(machine / "my-base")
    recipe.data = DataConfig(source=str(machine / "pairs.jsonl"), texts=str(machine / "texts.jsonl"))
    recipe.evaluate = EvaluateConfig(beside=str(machine / "general"))
    return recipe


def test_a_release_tells_nothing_of_the_machine(toy, machine, tmp_path, monkeypatch):
    output, adapter = machine / "out", machine / "adapter"
    command = (
        f"/usr/bin/lbr-st train --config {machine}/recipe.yaml --data.source={machine}/pairs.jsonl --output {output}"
    )
    monkeypatch.setattr("sys.argv", command.split())
    pipeline.run(toy, output, command=command_line())
    release(machine / "out-work" / "represent", adapter, adapter_only=True)
    work = machine / "out-work"
    (travels := work / "logs").mkdir()
    for stage in ("learn", "represent"):
        (travels / f"{stage}.json").write_bytes((work / stage / "training_log.json").read_bytes())
    (travels / "results.json").write_bytes((work / "results.json").read_bytes())
    folders = [output, adapter, travels, work / "results", work / "contamination", work / "plots"]
    assert found(folders, telltales(machine, tmp_path)) == []
    # What is named by a path is still named, and the work folder still knows the place, which resuming needs.
    told = load_recipe(output / "recipe.yaml")
    for key, name in zip(PLACES, ("my-base", "pairs.jsonl", "texts.jsonl", *[None] * 4, "general"), strict=True):
        assert name is None or told.flat()[key].startswith(f"local:{name}@sha256:")
    assert load_recipe(work / "recipe.yaml") == toy
    assert "lbr-st train --config recipe.yaml --data.source=pairs.jsonl" in (output / "README.md").read_text()
    for folder in (output, adapter):
        holds_no_code(folder)


def holds_no_code(folder):
    """A release is weights, settings, its card and its recipe; none of them names code of its own."""
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md", ".yaml"}
    for file in files:
        assert not file.is_symlink()
        assert not file.stat().st_mode & 0o111, file
        if file.suffix == ".json":
            text = file.read_text(encoding="utf-8")
            assert '"auto_map"' not in text
            assert "trust_remote_code" not in text
    if folder.name == "out":
        kinds = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
        assert all(kind.startswith("sentence_transformers.") for kind in kinds)
        assert np.isfinite(SentenceTransformer(str(folder), device="cpu").encode(["an acid"])).all()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/home/me/pairs.jsonl", "pairs.jsonl"),
        ("~/pairs.jsonl", "pairs.jsonl"),
        ("\\\\server\\share\\me\\pairs.jsonl", "pairs.jsonl"),
        ("data/pairs.jsonl", "data/pairs.jsonl"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("untrained:/home/me/base", "untrained:base"),
        ("//me/base", "base"),
        ("/", "/"),
    ],
)
def test_a_file_is_told_by_its_name(name, told):
    assert without_place(name) == told


def test_the_search_finds_what_it_looks_for(machine, tmp_path):
    for number in range(6):
        (machine / f"{number}.json").write_text(f'{{"path": "{machine}"}}')
    assert len(found([machine], {PLACE, TOKEN})) == 6
    (machine / "weights.safetensors").write_bytes(b"\0" + TOKEN.encode() + b"\xff")
    assert (str(machine / "weights.safetensors"), TOKEN) in found([machine], {PLACE, TOKEN})
