"""What a person installs and types first: the wheel outside of a checkout, and README's blocks as they stand."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from lbr_st.errors import LBRError
from lbr_st.model.bases import resolve_base

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^(<!-- not run by the tests: [^\n]+ -->\n)?```(bash|python)\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, made from the sdist, as `python -m build` makes both."""
    place = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", place, ROOT], check=True)
    return place


def test_an_index_would_take_wheel_and_sdist_as_they_are(built):
    files = sorted(built.iterdir())
    assert [file.name.partition("-0")[0] for file in files] == ["lbr_st", "lbr_st"]
    assert all(file.stat().st_size <= 30_000_000 for file in files)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    with zipfile.ZipFile(files[0]) as wheel, tarfile.open(files[1]) as sdist:
        own = {name for name in wheel.namelist() if name.startswith("lbr_st/")}
        assert own <= {name.partition("/")[2] for name in sdist.getnames()}
        [metadata] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        shown = message_from_bytes(wheel.read(metadata))
    paths = [path for path in (ROOT / "lbr_st").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert own == {path.relative_to(ROOT).as_posix() for path in paths}
    links = re.findall(r"\]\(([^)]+)\)", shown.get_payload())
    assert len(links) > 10
    source = dict(line.split(", ") for line in shown.get_all("Project-URL"))["Source"]
    assert [link for link in links if not link.startswith((f"{source}/blob/main/", "https://arxiv.org/"))] == []
    for link in links:
        own_file = link.removeprefix(f"{source}/blob/main/").partition("#")[0]
        assert own_file == link or (ROOT / own_file).exists(), link


def blocks():
    """README's blocks: whether a note says that the tests leave it out, its language, its code."""
    return [(bool(note), *rest) for note, *rest in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))]


def test_the_readmes_blocks_run_in_order_in_an_empty_folder_with_the_wheel(built, tmp_path):
    run = [(language, code) for left_out, language, code in blocks() if not left_out]
    assert [language for language, _ in run] == ["bash", "python"]
    try:
        resolve_base("smollm2-135m")
    except LBRError as error:
        pytest.skip(f"the base is not available: {error}")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    [wheel] = built.glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-compile", "--no-index", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    paths = {"PATH": f"{site / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(site)}
    environment = {**os.environ, **paths}
    found = [sys.executable, "-c", "import lbr_st; print(lbr_st.__file__)"]
    place = subprocess.run(found, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(place.strip()).is_relative_to(site)  # and not the checkout
    try:
        for language, code in run:
            shell = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
            done = subprocess.run([*shell, code], cwd=empty, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
            promised = [float(number) for line in re.findall(r"^# .*", code, re.M) for number in NUMBER.findall(line)]
            printed = [float(number) for number in NUMBER.findall(done.stdout)]
            assert printed[: len(promised)] == pytest.approx(promised, abs=0.01)
    finally:
        shutil.rmtree(empty)  # half a gigabyte, which pytest would keep for three runs
