"""A release says what it was made of and with, and nothing of where."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

import lbr_st
from lbr_st import pipeline
from lbr_st.files import installed_versions
from lbr_st.publish.bundle import read_bundle
from lbr_st.publish.card import PROVENANCE, git_revision
from lbr_st.publish.stock import release
from lbr_st.recipe import load_recipe


@pytest.fixture
def run(toy_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)
    pipeline.run(load_recipe(toy_recipe), tmp_path / "out")
    return tmp_path


def test_a_release_records_seed_versions_data_and_revision(run, toy_recipe):
    record = json.loads((run / "out" / PROVENANCE).read_text())
    source = Path(load_recipe(toy_recipe).data.source)
    assert record["seed"] == 0
    assert record["data"] == {
        "source": {"name": source.name, "content": hashlib.sha256(source.read_bytes()).hexdigest()}
    }
    assert record["versions"].keys() >= {"python", "torch", "transformers", "sentence-transformers", "peft"}
    assert record["processes"] == 1
    assert record["git_revision"] == git_revision(Path(lbr_st.__file__).parent)
    assert str(run) not in json.dumps(record)
    # Each stage has it as well, and a release from a stage passes it on.
    assert json.loads((run / "out-work" / "represent" / PROVENANCE).read_text()) == record
    release(run / "out-work" / "represent", run / "again")
    assert json.loads((run / "again" / PROVENANCE).read_text()) == record
    release(run / "out-work" / "represent", run / "adapter", adapter_only=True)
    assert read_bundle(run / "adapter").provenance == record


def test_the_same_recipe_and_seed_give_the_same_weights_and_another_seed_others(run, toy_recipe):
    recipe = load_recipe(toy_recipe)
    pipeline.run(recipe, run / "again")
    recipe.seed = 1
    pipeline.run(recipe, run / "other")
    first, again, other = ((run / name / "model.safetensors").read_bytes() for name in ("out", "again", "other"))
    assert first == again
    assert first != other


def test_the_revision_of_a_checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("a")
    assert git_revision(tmp_path / "package") is None
    git("init")
    assert git_revision(tmp_path / "package") is None  # not tracked, as an installed package in a project's .venv
    git("add", ".")
    git("commit", "-m", "first")
    clean = git_revision(tmp_path / "package")
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "elsewhere").write_text("a change that is not the package's")
    assert git_revision(tmp_path / "package") == clean
    (tmp_path / "package" / "code.py").write_text("b")
    assert git_revision(tmp_path / "package") == f"{clean}-dirty"


def test_versions_of_what_is_not_installed_are_left_out():
    assert installed_versions(["torch", "no-such-package"]).keys() == {"torch"}
