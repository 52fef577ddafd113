"""What is true of every trained model that comes with this package; there may be none yet."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from lbr_st.domains.tasks import DOMAIN_TASKS
from lbr_st.errors import LBRError
from lbr_st.files import sha256_of
from lbr_st.model.bases import resolve_base
from lbr_st.publish.bundle import ADAPTER, BUNDLES, MANIFEST, MOST_BYTES, PROBES, pin_of, read_bundle, shipped_models
from lbr_st.publish.stock import build_released
from lbr_st.recipe import recipe_without_places

# SHA-256 of model.safetensors as `lbr-st build` writes it, the same with AVX-512 and AVX2 and with one or two threads.
WEIGHTS = {
    "lbr-chem": "c068e954d57f4596290ae0a1323b649b49bbdcfc16ba4e0280ff0d4bcb9aa990",
    "lbr-code": "684b9b56afa49719ac01f5d2ff1ba1c6d9e0c51d7ff322844574b6c156fa99b8",
    "lbr-med": "0320f26153088c1b22d3cd45004eac458697a9b71f7c0cbaa91a4925d540d5c3",
}
OTHERS = sorted(shipped_models().keys() - {"lbr-chem"})
every_model = pytest.mark.parametrize("name", shipped_models())


def test_nothing_but_bundles_ships():
    folders = {path.name for path in BUNDLES.iterdir()}
    assert folders == shipped_models().keys()


@every_model
def test_it_is_whole_small_and_known(name):
    bundle = read_bundle(shipped_models()[name])  # every hash, the entries of the manifest, the recipe
    assert bundle.name == name
    assert bundle.base == pin_of(bundle.recipe.model.base)
    assert {file.name for file in bundle.folder.iterdir()} == {*bundle.files, MANIFEST}
    assert sum(file.stat().st_size for file in bundle.folder.iterdir()) <= MOST_BYTES == 15_000_000
    arrays = load_file(bundle.folder / ADAPTER).values()
    assert {str(array.dtype) for array in arrays} == {"float16"}
    assert all(np.isfinite(array).all() for array in arrays)


@every_model
def test_it_says_what_it_was_made_of(name):
    """Anybody can make it again: its data come from the package registry, and what decides the weights is recorded."""
    bundle = read_bundle(shipped_models()[name])
    data = bundle.recipe.data
    sources = {data.source, *data.also, data.texts, data.pairs} - {None}
    assert sources <= DOMAIN_TASKS.keys()
    assert bundle.recipe == recipe_without_places(bundle.recipe)
    assert bundle.provenance["seed"] == bundle.recipe.seed
    assert bundle.provenance.keys() >= {"versions", "data", "git_revision", "device"}
    assert {source["name"] for source in bundle.provenance["data"].values()} == sources
    for entry in ("licence", "language", "data", "contamination", "overlaps", "examples"):
        assert bundle.card[entry], entry


@pytest.mark.parametrize("name", ["lbr-chem", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_it_builds_into_a_release_that_embeds_as_packed(name, tmp_path):
    bundle = read_bundle(shipped_models()[name])
    try:
        resolve_base(bundle.recipe.model.base)
    except LBRError as error:
        pytest.skip(f"the base is not to be had: {error}")
    try:
        build_released(name, tmp_path / name)
        assert sha256_of(tmp_path / name / "model.safetensors") == WEIGHTS[name]
        stock = SentenceTransformer(str(tmp_path / name), device="cpu")
        queries = stock.encode_query(bundle.probes, batch_size=4)
        documents = stock.encode_document(bundle.probes, batch_size=4)
        expected = load_file(bundle.folder / PROBES)["embeddings"].astype(np.float32)
        assert ((np.concatenate([queries, documents]) * expected).sum(axis=1) >= 0.999).all()
        assert "## Data and licences" in (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert json.loads((tmp_path / name / "provenance.json").read_text())["built"]
    finally:
        shutil.rmtree(tmp_path / name, ignore_errors=True)  # half a gigabyte, which pytest would keep for three runs
