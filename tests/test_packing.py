"""A finished run is packed into a small folder, and the release that is built from that is the run's own."""

import hashlib
import json
import shutil
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModelForCausalLM

import lbr_st
from lbr_st import bases, pipeline
from lbr_st.bottleneck import backbone_of, pooler_of
from lbr_st.build import load_model
from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.packing import build as build_module
from lbr_st.packing import pack as pack_module
from lbr_st.packing import packed as packed_module
from lbr_st.packing.build import build_released
from lbr_st.packing.pack import pack
from lbr_st.packing.packed import MANIFEST, find_packed, read_packed, shipped_models
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig
from lbr_st.seals import seal

TEXTS = ["an acid", "the base of a salt and an ester " * 10, "x", "β-D-glucose"]
BASE = bases.EmbeddedBase("toy==1", "toy.whl", "ab" * 32, "toy.gguf", "Apache-2.0", "A toy.", 1, "a/toy")


@pytest.fixture(scope="module")
def cache(tiny_base, tmp_path_factory):
    """A cache with the base "toy" in it, as if it had been fetched and converted before."""
    cache = tmp_path_factory.mktemp("cache")
    shutil.copytree(tiny_base("llama"), cache / "bases" / "toy-abababab")
    return cache


@pytest.fixture(scope="module")
def known(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bases.BASES, "toy", BASE)
        patch.setenv("LBR_ST_CACHE", str(cache))
        yield


def recipe_of(folder, **model):
    rows = [
        {"query": f"{kind} number {i}", "document": f"the {kind} of the class {i} that is a salt of {i * 7}."}
        for i in range(20)
        for kind in ("acid", "base", "salt", "ester")
    ]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    # Large steps, so that the trained model is far from its base.
    return Recipe(
        name="lbr-toy",
        precision="float32",
        model=ModelConfig(**{"base": "toy", "max_seq_length": 24, "lora_rank": 2, "lora_alpha": 8, **model}),
        data=DataConfig(source=str(folder / "pairs.jsonl")),
        learn=LearnConfig(max_steps=2, batch_size=4, warmup_steps=0, learning_rate=0.05, num_eval_pairs=2),
        represent=RepresentConfig(max_steps=2, batch_size=4, warmup_steps=0, learning_rate=0.05),
        evaluate=EvaluateConfig(num_queries=2),
    )


@pytest.fixture(scope="module")
def run(known, tmp_path_factory):
    """The output of a whole run, with scores and a projection; its work folder lies beside it."""
    pytest.importorskip("mteb")
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_plot", lambda work: None)
        pipeline.run(recipe_of(folder, projection_dim=16), folder / "out", command="lbr-st train --output out")
    return folder / "out"


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    return pack(run, into=tmp_path_factory.mktemp("packed"))


@pytest.fixture
def mine(packed, tmp_path):
    """A copy of the packed model to damage, and a function that writes its manifest anew."""
    folder = tmp_path / "mine"
    shutil.copytree(packed, folder)

    def rewrite(**changes):
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | changes
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return folder, rewrite


@pytest.fixture
def nothing_written(tmp_path):
    """The output that a refused building must not leave."""
    yield tmp_path / "built"
    assert not (tmp_path / "built").exists()
    assert not [left for left in tmp_path.iterdir() if left.name.endswith(".partial")]


def encodings(model):
    return np.concatenate([model.encode_query(TEXTS), model.encode_document(TEXTS)])


def test_the_release_built_from_a_packed_run_is_the_runs_own(run, packed, tmp_path):
    built = build_released(str(packed), tmp_path / "built")
    own = encodings(SentenceTransformer(str(run), device="cpu"))
    again = encodings(SentenceTransformer(str(built), device="cpu"))
    assert own.shape == again.shape == (8, 16)
    assert ((own * again).sum(axis=1) >= 0.9999).all()
    # That says something: training moved the embeddings, and each stage did.
    for other in (
        pipeline.build(recipe_of(tmp_path, projection_dim=16)),
        load_model(run.parent / "out-work" / "learn"),
    ):
        assert ((own * encodings(other)).sum(axis=1) < 0.99).any()
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert (built / name).read_bytes() == (run / name).read_bytes()


def test_it_is_small_in_16_bits_and_tells_no_place_of_this_machine(run, packed):
    assert {file.name for file in packed.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "projection.safetensors",
        "probes.safetensors",
        "recipe.yaml",
        "results.json",
        "manifest.json",
    }
    for file in packed.iterdir():
        if file.suffix == ".safetensors":
            assert {str(array.dtype) for array in load_file(file).values()} == {"float16"}
        else:
            text = file.read_text(encoding="utf-8")
            assert str(run.parent) not in text
            assert str(Path.home()) not in text
    rows = [array.shape for name, array in load_file(packed / "adapter_model.safetensors").items() if "embed" in name]
    assert rows == [(4, 32)]  # four rows, and no vocabulary
    # The texts of queries and documents stay with the run.
    assert "ester number" in (run.parent / "out-work" / "results.json").read_text(encoding="utf-8")
    assert "ester number" not in (packed / "results.json").read_text(encoding="utf-8")


def test_what_is_loaded_is_float32_with_the_projection(packed):
    model = build_module.training_model(read_packed(packed))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = load_file(packed / "projection.safetensors")["weight"].astype(np.float32)
    np.testing.assert_array_equal(pooler_of(model).projection.weight.detach().cpu().numpy(), expected)
    assert backbone_of(model).model.peft_config["default"].base_model_name_or_path == "toy"


def test_the_card_has_scores_licences_and_the_data_check(run, packed, tmp_path):
    card = (build_released(str(packed), tmp_path / "built") / "README.md").read_text(encoding="utf-8")
    own = (run / "README.md").read_text(encoding="utf-8")
    for heading in ("## Results", "## Data and licences", "## Training data against evaluation data", "## Recipe"):
        section = own.partition(heading)[2].partition("\n## ")[0]
        assert section.strip(), heading
        assert section in card, heading
    assert "license: apache-2.0" in card
    assert "This copy was built by `lbr-st build`" in card
    made, before = (json.loads((folder / "provenance.json").read_text()) for folder in (tmp_path / "built", run))
    built = made.pop("built")
    assert made == before
    assert built["adapter_sha256"] == hashlib.sha256((packed / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert (tmp_path / "built" / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()


def test_without_scores_or_projection_under_another_name(known, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)
    recipe = recipe_of(tmp_path, num_bottleneck_tokens=0)
    recipe.learn.enabled, recipe.evaluate.enabled = False, False
    pipeline.run(recipe, tmp_path / "out")
    packed = pack(tmp_path / "out-work", "lbr-other", into=tmp_path / "packed")
    assert packed == tmp_path / "packed" / "lbr-other"
    assert {"projection.safetensors", "results.json"}.isdisjoint(file.name for file in packed.iterdir())
    monkeypatch.chdir(tmp_path)
    built = build_released("packed/lbr-other")
    assert built == Path("lbr-other")
    own, again = (encodings(SentenceTransformer(str(folder), device="cpu")) for folder in (tmp_path / "out", built))
    assert ((own * again).sum(axis=1) >= 0.9999).all()
    card = (built / "README.md").read_text(encoding="utf-8")
    assert "# lbr-other" in card
    assert "scores below" not in card


def test_the_command_names_the_folder_and_the_two_lines(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packed_module, "MODELS", packed.parent)
    monkeypatch.chdir(tmp_path)
    assert main(["build", "lbr-toy"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("lbr-toy is ready.")
    *_, first, second = said.strip().splitlines()
    names = {}
    exec(f"{first}\n{second}", names)
    assert names["embeddings"].shape == (1, 16)
    # It is there now, and is not replaced unasked; a folder of that name does not hide the model that ships.
    assert main(["build", "lbr-toy"]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main(["build", "lbr-toy", "--overwrite"]) == 0


def test_the_command_that_packs(run, packed, tmp_path, capsys):
    rows = json.loads((packed / "results.json").read_text())
    assert len(rows) > 1
    (tmp_path / "best.json").write_text(json.dumps(rows[-1:]))
    words = ["pack", str(run), "--name", "lbr-x", "--into", str(tmp_path), "--results", str(tmp_path / "best.json")]
    assert main(words) == 0
    assert json.loads((tmp_path / "lbr-x" / "results.json").read_text()) == rows[-1:]
    assert capsys.readouterr().out.strip() == str(tmp_path / "lbr-x")
    again = (tmp_path / "lbr-x" / "adapter_model.safetensors").read_bytes()
    assert again == (packed / "adapter_model.safetensors").read_bytes()
    assert main(["pack", str(run), "--name", "lbr-x", "--into", str(tmp_path)]) == 1
    assert "already exists" in capsys.readouterr().err


def test_it_is_public_and_what_ships_is_found_by_its_name(packed, monkeypatch):
    assert lbr_st.build_released is build_released
    monkeypatch.setattr(packed_module, "MODELS", packed.parent)
    assert shipped_models() == {"lbr-toy": packed}
    assert find_packed("lbr-toy") == packed
    said = r"no packed model 'lbr-tyo'\. Did you mean lbr-toy\? Give one of lbr-toy, or the folder of a packed model\."
    with pytest.raises(LBRError, match=said):
        find_packed("lbr-tyo")
    monkeypatch.setattr(packed_module, "MODELS", packed / "nothing")
    with pytest.raises(LBRError, match="None comes with this version; give the folder"):
        find_packed("lbr-toy")


def test_a_wheel_holds_every_file_of_a_packed_model(packed):
    pyproject = Path(lbr_st.__file__).parents[1] / "pyproject.toml"
    patterns = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]["lbr_st"]
    assert Path(lbr_st.__file__).parent / "models" == packed_module.MODELS
    for file in packed.iterdir():
        assert any(fnmatch(f"models/lbr-toy/{file.name}", pattern) for pattern in patterns), file.name


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("adapter_model.safetensors", r"adapter_model.safetensors is not what was written \(its SHA-256 differs\)"),
        ("recipe.yaml", "recipe.yaml is not what was written"),
        ("results.json", "results.json is not what was written"),
    ],
)
def test_a_flipped_byte_is_named(mine, nothing_written, file, what):
    folder, _ = mine
    content = bytearray((folder / file).read_bytes())
    content[-3] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(LBRError, match=what):
        build_released(str(folder), nothing_written)


def test_a_missing_and_a_cut_file_are_named(mine, nothing_written):
    folder, _ = mine
    probes = folder / "probes.safetensors"
    probes.write_bytes(probes.read_bytes()[:-1])
    with pytest.raises(LBRError, match=r"probes.safetensors has .* bytes where"):
        build_released(str(folder), nothing_written)
    probes.unlink()
    with pytest.raises(LBRError, match=r"probes\.safetensors is missing"):
        build_released(str(folder), nothing_written)


def test_a_folder_without_or_with_another_manifest(mine, tmp_path, nothing_written):
    folder, rewrite = mine
    rewrite(format=2)
    with pytest.raises(LBRError, match="is of format 2, and this version reads format 1"):
        build_released(str(folder), nothing_written)
    rewrite(format=1, name="lbr-law")
    with pytest.raises(LBRError, match=r"names another model or base than recipe.yaml"):
        build_released(str(folder), nothing_written)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(LBRError, match="cannot be read"):
        build_released(str(folder), nothing_written)
    (folder / MANIFEST).unlink()
    with pytest.raises(LBRError, match=r"not a packed model: it has no manifest.json"):
        build_released(str(folder), nothing_written)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("base", {"name": "/a/folder"}),
        ("base", {"name": []}),
        ("files", {}),
        ("files", []),
        ("probes", []),
        ("probes", [1]),
        ("card", {"data": [1]}),
        ("provenance", None),
    ],
)
def test_a_manifest_that_was_not_written_by_pack(mine, nothing_written, key, value):
    folder, _ = mine
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(manifest | {key: value}), encoding="utf-8")
    with pytest.raises(LBRError, match=f"the entry '{key}' is missing or not as it is packed"):
        build_released(str(folder), nothing_written)


def test_a_manifest_cannot_name_files_elsewhere(mine, nothing_written):
    folder, _ = mine
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"]["../secret"] = {"size": 1, "sha256": ""}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(LBRError, match="the entry 'files'"):
        build_released(str(folder), nothing_written)


def test_a_projection_or_a_probe_that_is_not_there(mine, nothing_written):
    folder, rewrite = mine
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    rewrite(files={name: entry for name, entry in manifest["files"].items() if name != "projection.safetensors"})
    with pytest.raises(LBRError, match=r"does not list projection.safetensors"):
        build_released(str(folder), nothing_written)
    rewrite(files=manifest["files"], probes=manifest["probes"][1:])
    with pytest.raises(LBRError, match=r"probes.safetensors: holds embeddings of shape"):
        build_released(str(folder), nothing_written)
    save_file({"other": np.zeros(3, np.float16)}, folder / "probes.safetensors")
    rewrite(probes=manifest["probes"])
    with pytest.raises(LBRError, match=r"holds embeddings of shape \(0,\)"):
        build_released(str(folder), nothing_written)


def test_another_base_is_refused(packed, tiny_base, tmp_path, nothing_written):
    # Of the same shape with other weights: only the probe texts tell.
    with pytest.raises(LBRError, match="gives other embeddings than when it was packed: the lowest cosine"):
        build_released(str(packed), nothing_written, base=tiny_base("llama", seed=1))
    with pytest.raises(LBRError, match="its tokenizer is not that of the base that lbr-toy was trained on"):
        build_released(str(packed), nothing_written, base=tiny_base("llama", words=("acid", "base")))
    with pytest.raises(LBRError, match="the adapter does not fit its base: Target modules"):
        build_released(str(packed), nothing_written, base=tiny_base("gpt-neox"))
    config = AutoConfig.from_pretrained(tiny_base("llama"), intermediate_size=64)
    wide = tmp_path / "wide"
    shutil.copytree(tiny_base("llama"), wide)
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    with pytest.raises(LBRError, match="does not fit its base: 0 weights missing, 0 unknown, 6 of another shape"):
        build_released(str(packed), nothing_written, base=str(wide))


def test_the_right_base_in_another_place_is_taken(packed, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "empty"))
    base = tmp_path / "elsewhere"
    shutil.copytree(tiny_base("llama"), base)
    built = build_released(str(packed), tmp_path / "built", base=str(base))
    assert not (tmp_path / "empty").exists()
    for file in built.rglob("*"):
        if file.suffix in (".json", ".md", ".yaml"):
            assert str(tmp_path) not in file.read_text(encoding="utf-8"), file


def test_adapters_trained_on_a_base_in_4_bits_go_onto_the_full_one(mine, packed, tmp_path):
    folder, rewrite = mine
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("quantize: null", "quantize: 4bit"), encoding="utf-8")
    rewrite()
    assert read_packed(folder).recipe.model.quantize == "4bit"
    build_released(str(folder), tmp_path / "four")
    build_released(str(packed), tmp_path / "full")
    four, full = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("four", "full"))
    assert four == full
    assert "base in 4 bits (QLoRA)" in (tmp_path / "four" / "README.md").read_text(encoding="utf-8")


def test_another_edition_of_the_base_is_refused(packed, monkeypatch, nothing_written):
    newer = bases.EmbeddedBase(**{**vars(BASE), "requirement": "toy==2", "sha256": "cd" * 32})
    monkeypatch.setitem(bases.BASES, "toy", newer)
    with pytest.raises(LBRError, match="it was trained on toy of toy==1; this version of lbr-st takes that of toy==2"):
        build_released(str(packed), nothing_written)


def test_a_packed_model_is_not_replaced_by_its_release(mine):
    folder, _ = mine
    with pytest.raises(LBRError, match="this is the packed model itself"):
        build_released(str(folder), folder, overwrite=True)
    assert (folder / MANIFEST).is_file()


def work_copy(run, tmp_path, **changes):
    """A copy of a run's work folder, its recipe changed."""
    shutil.copytree(run.parent / "out-work", tmp_path / "run-work")
    path = tmp_path / "run-work" / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert f"{old}: " in text
        text = "\n".join(f"{line.split(':')[0]}: {new}" if f" {old}: " in line else line for line in text.splitlines())
    path.write_text(text, encoding="utf-8")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"lora": "false"}, "model.lora: every weight was trained"),
        ({"base": "some/model"}, "'some/model' is not carried by the package registry"),
        ({"base": "/a/folder"}, "'/a/folder' is not carried by the package registry"),
    ],
)
def test_a_run_that_cannot_be_packed(run, tmp_path, changes, what):
    with pytest.raises(LBRError, match=what):
        pack(work_copy(run, tmp_path, **changes), into=tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_run_that_is_not_finished(run, tmp_path):
    work = work_copy(run, tmp_path)
    shutil.rmtree(tmp_path / "run-work" / "represent")
    with pytest.raises(LBRError, match="represent: this stage of the run is not finished"):
        pack(work, into=tmp_path / "packed")
    with pytest.raises(LBRError, match="there is no run here"):
        pack(tmp_path / "nothing", into=tmp_path / "packed")
    with pytest.raises(LBRError, match="cannot name a model"):
        pack(work, "../up", into=tmp_path / "packed")


def test_data_that_changed_since_training_are_refused(run, tmp_path):
    work = work_copy(run, tmp_path)
    record = tmp_path / "run-work" / "represent" / "provenance.json"
    made = json.loads(record.read_text())
    made["data"]["source"]["content"] = "0" * 64
    record.write_text(json.dumps(made))
    seal(record.parent)
    with pytest.raises(LBRError, match="the data are no longer those that the run trained on"):
        pack(work, into=tmp_path / "packed")


def test_too_large_a_model_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "MOST_BYTES", 10_000)
    with pytest.raises(LBRError, match=r"packed, lbr-toy takes 0\.\d MB, and at most 0 MB are kept"):
        pack(run, into=tmp_path / "packed")
    assert not list((tmp_path / "packed").iterdir())


@pytest.mark.parametrize(
    ("scales", "what"),
    [
        ({"lora_B": 1e7}, "does not fit into 16 bits"),  # more than 65,504
        ({"lora_A": 1e-6, "lora_B": 1e5}, "in 16 bits the adapter gives other embeddings than the run"),  # under 1e-7
    ],
)
def test_weights_that_16_bits_cannot_hold_are_refused(run, tmp_path, monkeypatch, scales, what):
    def scaled(folder):
        model = load_model(folder)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(next((scale for part, scale in scales.items() if part in name), 1))
        return model

    monkeypatch.setattr(pack_module, "load_model", scaled)
    with pytest.raises(LBRError, match=what):
        pack(run, into=tmp_path / "packed")
    assert not list((tmp_path / "packed").iterdir())
