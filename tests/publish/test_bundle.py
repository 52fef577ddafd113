"""A trained model becomes a small bundle, and the release that is built from that is the model's own."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import perturbed
from transformers import AutoConfig, AutoModelForCausalLM

from lbr_st import pipeline
from lbr_st.bottleneck.passes import backbone_of
from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.files import published
from lbr_st.model import bases
from lbr_st.model.build import build_model
from lbr_st.model.load import load_model
from lbr_st.publish import bundle as bundle_module
from lbr_st.publish.bundle import MANIFEST, bundle, find_bundle, read_bundle, shipped_models, training_model
from lbr_st.publish.stock import build_released, release
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, ReleaseConfig, RepresentConfig
from lbr_st.training.model import model_from_recipe

TEXTS = ["an acid", "the base of a salt and an ester " * 10, "x", "β-D-glucose"]
BASE = bases.EmbeddedBase("toy==1", "toy.whl", "ab" * 32, "toy.gguf", "Apache-2.0", "A toy.", 1, "a/toy")


@pytest.fixture(scope="module")
def known(tiny_base, tmp_path_factory):
    """A cache with the base "toy" in it, as if it had been fetched and converted before."""
    cache = tmp_path_factory.mktemp("cache")
    shutil.copytree(tiny_base("llama"), cache / "bases" / "toy-abababab")
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
        release=ReleaseConfig(license="apache-2.0"),
        precision="float32",
        model=ModelConfig(**{"base": "toy", "max_seq_length": 24, "lora_rank": 2, "lora_alpha": 8, **model}),
        data=DataConfig(source=str(folder / "pairs.jsonl")),
        learn=LearnConfig(max_steps=2, batch_size=4, warmup_steps=0, learning_rate=0.05, num_eval_pairs=2),
        represent=RepresentConfig(max_steps=2, batch_size=4, warmup_steps=0, learning_rate=0.05),
        evaluate=EvaluateConfig(num_queries=2),
    )


@pytest.fixture(scope="module")
def run(known, tmp_path_factory):
    """The output of a whole run, with scores and a projection; its work folder lies next to it."""
    pytest.importorskip("mteb")
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_plot", lambda work: None)
        pipeline.run(recipe_of(folder, projection_dim=16), folder / "out", command="lbr-st train --output out")
    return folder / "out"


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    return bundle(run, into=tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def mine(made, tmp_path):
    """A copy of the bundle to damage, and a function that writes its manifest again."""
    folder = tmp_path / "mine"
    shutil.copytree(made, folder)

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
    model = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model), device="cpu")
    return np.concatenate([model.encode_query(TEXTS), model.encode_document(TEXTS)])


def test_the_release_built_from_a_bundle_is_the_runs_own(run, made, tmp_path):
    built = build_released(str(made), tmp_path / "built")
    own, again = encodings(run), encodings(built)
    assert own.shape == again.shape == (8, 16)
    assert ((own * again).sum(axis=1) >= 0.9999).all()
    # That says something: training moved the embeddings, and each stage did.
    for other in (
        model_from_recipe(recipe_of(tmp_path, projection_dim=16)),
        load_model(run.parent / "out-work" / "learn"),
    ):
        assert ((own * encodings(other)).sum(axis=1) < 0.99).any()
    for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json", "recipe.yaml"):
        assert (built / name).read_bytes() == (run / name).read_bytes()
    card, before = ((folder / "README.md").read_text(encoding="utf-8") for folder in (built, run))
    for heading in ("## Results", "## Data and licences", "## Training data against evaluation data", "## Recipe"):
        section = before.partition(heading)[2].partition("\n## ")[0]
        assert section.strip(), heading
        assert section in card, heading
    assert "license: apache-2.0" in card
    assert "This copy was built by `lbr-st build`" in card
    record, before = (json.loads((folder / "provenance.json").read_text()) for folder in (built, run))
    adapter = hashlib.sha256((made / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert record.pop("built")["adapter_sha256"] == adapter
    assert record == before


def test_it_is_small_in_16_bits_and_tells_no_place_of_this_machine(run, made):
    arrays = {"adapter_model.safetensors", "projection.safetensors", "probes.safetensors"}
    settings = {"adapter_config.json", "recipe.yaml", "results.json", "manifest.json"}
    assert {file.name for file in made.iterdir()} == arrays | settings
    for file in made.iterdir():
        if file.name in arrays:
            assert {str(array.dtype) for array in load_file(file).values()} == {"float16"}
        else:
            text = file.read_text(encoding="utf-8")
            assert str(run.parent) not in text
            assert str(Path.home()) not in text
            assert "ester number" not in text  # the texts of queries and documents stay with the run
    assert "ester number" in (run.parent / "out-work" / "results.json").read_text(encoding="utf-8")
    rows = [array.shape for name, array in load_file(made / "adapter_model.safetensors").items() if "embed" in name]
    assert rows == [(4, 32)]  # four rows, and no vocabulary
    model, lowest = training_model(read_bundle(made))
    assert lowest >= 0.9999
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert backbone_of(model).model.peft_config["default"].base_model_name_or_path == "toy"


def test_format_1_takes_the_settings_from_its_recipe(mine):
    folder, rewrite = mine
    now = read_bundle(folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del manifest["model"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 1}), encoding="utf-8")
    assert read_bundle(folder) == now
    rewrite(format=3)
    with pytest.raises(LBRError, match="is of format 3, and this version reads formats up to 2"):
        read_bundle(folder)


def test_without_scores_or_projection_under_another_name(known, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_plot", lambda work: None)
    recipe = recipe_of(tmp_path, num_bottleneck_tokens=0)
    recipe.learn.enabled, recipe.evaluate.enabled = False, False
    pipeline.run(recipe, tmp_path / "out")
    made = bundle(tmp_path / "out-work", "lbr-other", into=tmp_path / "bundles")
    assert {"projection.safetensors", "results.json"}.isdisjoint(file.name for file in made.iterdir())
    monkeypatch.chdir(tmp_path)
    assert build_released("bundles/lbr-other") == Path("lbr-other")
    assert ((encodings(tmp_path / "out") * encodings("lbr-other")).sum(axis=1) >= 0.9999).all()
    card = Path("lbr-other", "README.md").read_text(encoding="utf-8")
    assert "# lbr-other" in card
    assert "scores below" not in card


def test_a_bundle_of_any_model_on_any_base(tiny_base, tmp_path, capsys):
    """A model that no recipe made, on a base of this machine, as a folder and in hand."""
    base = tiny_base("qwen3")
    model = perturbed(build_model(base, max_seq_length=24, lora_rank=2, query_prompt="ask: "))
    model.prompts["other"] = "say: "
    model.save_pretrained(str(tmp_path / "training"), create_model_card=False)
    made = bundle(tmp_path / "training", into=tmp_path / "bundles")
    assert main(["release", str(tmp_path / "training"), "--adapter-only", "--output", str(tmp_path / "again")]) == 0
    release(model, tmp_path / "in-hand", adapter_only=True)
    manifests = []
    for folder in (made, tmp_path / "again", tmp_path / "in-hand"):
        manifests.append(json.loads((folder / MANIFEST).read_text()))
        assert manifests[-1].pop("name") == folder.name
        assert str(tmp_path) not in (folder / "adapter_config.json").read_text()
    assert manifests[0] == manifests[1] == manifests[2]
    assert manifests[0]["base"] == {"name": published(base)}
    with pytest.raises(LBRError, match=r"local:base-.*: no such folder\..*--base FOLDER"):
        build_released(str(made), tmp_path / "built")
    release(made, tmp_path / "released", base=base)
    assert ((encodings(model) * encodings(tmp_path / "released")).sum(axis=1) >= 0.9999).all()
    assert SentenceTransformer(str(tmp_path / "released"), device="cpu").prompts["other"] == "say: "
    assert "this is the bundle itself" in error_of(["build", str(made), "--output", str(made), "--overwrite"], capsys)


def error_of(words, capsys):
    assert main(words) == 1
    return capsys.readouterr().err


def test_what_adapter_only_wrote_before_is_still_built_and_released(tiny_base, tmp_path, monkeypatch):
    model = perturbed(build_model(tiny_base("llama"), max_seq_length=24, lora_rank=2))
    model.save_pretrained(str(tmp_path / "old"), create_model_card=False)
    for file, key in (("adapter_config.json", "base_model_name_or_path"), ("sentence_bert_config.json", "base")):
        settings = json.loads((tmp_path / "old" / file).read_text()) | {key: "my-base"}
        (tmp_path / "old" / file).write_text(json.dumps(settings))
    build_released(str(tmp_path / "old"), tmp_path / "built", base=tiny_base("llama"))
    release(tmp_path / "old", tmp_path / "released", base=tiny_base("llama"))
    made = bundle(tmp_path / "old", "new", into=tmp_path, base=tiny_base("llama"))
    assert read_bundle(made).base == {"name": "my-base"}
    for folder in ("built", "released"):
        np.testing.assert_allclose(encodings(tmp_path / folder), encodings(model), atol=1e-5)


def test_the_command_names_the_folder_and_the_two_lines(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundle_module, "BUNDLES", made.parent)
    monkeypatch.chdir(tmp_path)
    assert main(["build", "lbr-toy"]) == 0
    *_, first, second = capsys.readouterr().out.strip().splitlines()
    names = {}
    exec(f"{first}\n{second}", names)
    assert names["embeddings"].shape == (1, 16)
    # It is there now, and is not replaced unasked; a folder of that name does not hide the model that ships.
    assert "already exists" in error_of(["build", "lbr-toy"], capsys)
    assert main(["build", "lbr-toy", "--overwrite"]) == 0


@pytest.mark.parametrize("command", ["bundle", "pack"])
def test_the_command_and_its_old_name(run, made, tmp_path, capsys, command):
    rows = json.loads((made / "results.json").read_text())
    assert len(rows) > 1
    (tmp_path / "best.json").write_text(json.dumps(rows[-1:]))
    words = [command, str(run), "--name", "lbr-x", "--into", str(tmp_path), "--results", str(tmp_path / "best.json")]
    assert main(words) == 0
    assert json.loads((tmp_path / "lbr-x" / "results.json").read_text()) == rows[-1:]
    assert capsys.readouterr().out.strip() == str(tmp_path / "lbr-x")
    again = (tmp_path / "lbr-x" / "adapter_model.safetensors").read_bytes()
    assert again == (made / "adapter_model.safetensors").read_bytes()
    assert "already exists" in error_of(words, capsys)


def test_what_ships_is_found_by_its_name(made, monkeypatch):
    monkeypatch.setattr(bundle_module, "BUNDLES", made.parent)
    assert shipped_models() == {"lbr-toy": made}
    assert find_bundle("lbr-toy") == made
    said = r"unknown bundle 'lbr-tyo'\. Did you mean lbr-toy\? Give one of lbr-toy, or the folder of a bundle\."
    with pytest.raises(LBRError, match=said):
        find_bundle("lbr-tyo")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "recipe.yaml", "results.json", "probes.safetensors"])
def test_a_flipped_byte_a_cut_and_a_missing_file_are_named(mine, nothing_written, file):
    folder, _ = mine
    content = (folder / file).read_bytes()
    for damaged in (content[:-3] + bytes([content[-3] ^ 1]) + content[-2:], content[:-1], None):
        (folder / file).unlink()
        if damaged is not None:
            (folder / file).write_bytes(damaged)
        with pytest.raises(LBRError, match=f"{file} is missing or not what was written"):
            build_released(str(folder), nothing_written)
        (folder / file).write_bytes(content)


def test_a_folder_without_a_manifest_or_with_one_that_lists_too_little_or_too_much(mine, nothing_written):
    folder, rewrite = mine
    files = read_bundle(folder).files
    (folder.parent / "secret").write_text("x")
    for listed, name in (
        ({name: entry for name, entry in files.items() if name != "adapter_model.safetensors"}, "adapter_model"),
        ({**files, "../secret": {}}, r"\.\./secret"),
    ):
        rewrite(files=listed)
        with pytest.raises(LBRError, match=f"{name}.* is missing or not"):
            build_released(str(folder), nothing_written)
    (folder / MANIFEST).unlink()
    with pytest.raises(LBRError, match=r"not a bundle: it has no manifest.json"):
        build_released(str(folder), nothing_written)


def test_another_base_is_refused(made, tiny_base, tmp_path, nothing_written, monkeypatch):
    wide = tmp_path / "wide"
    shutil.copytree(tiny_base("llama"), wide)
    config = AutoConfig.from_pretrained(wide, intermediate_size=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    others = {
        tiny_base("llama", seed=1): "gives other embeddings than the trained model: the lowest cosine",
        tiny_base("llama", words=("acid", "base")): "its tokenizer is not that of the base that lbr-toy was trained on",
        tiny_base("gpt-neox"): "the adapter does not fit its base: Target modules",
        str(wide): "does not fit its base: 0 weights missing, 0 unknown, 6 of another shape",
    }
    for base, said in others.items():
        with pytest.raises(LBRError, match=said):
            build_released(str(made), nothing_written, base=base)
    newer = bases.EmbeddedBase(**{**vars(BASE), "requirement": "toy==2", "sha256": "cd" * 32})
    monkeypatch.setitem(bases.BASES, "toy", newer)
    with pytest.raises(LBRError, match="it was trained on another toy than the one that this version"):
        build_released(str(made), nothing_written)


def test_the_base_may_lie_elsewhere_and_is_the_one_in_full_precision(mine, made, tiny_base, tmp_path, monkeypatch):
    folder, rewrite = mine
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("quantize: null", "quantize: 4bit"), encoding="utf-8")
    rewrite()
    build_released(str(made), tmp_path / "full")
    monkeypatch.setenv("LBR_ST_CACHE", str(tmp_path / "empty"))
    base = shutil.copytree(tiny_base("llama"), tmp_path / "elsewhere")
    built = build_released(str(folder), tmp_path / "four", base=str(base))
    assert not (tmp_path / "empty").exists()
    assert (built / "model.safetensors").read_bytes() == (tmp_path / "full" / "model.safetensors").read_bytes()
    assert "base in 4 bits (QLoRA)" in (built / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_bundled(run, tmp_path, tiny_base, monkeypatch):
    into = tmp_path / "bundles"
    work = tmp_path / "run-work"
    shutil.copytree(run.parent / "out-work", work)
    with pytest.raises(LBRError, match="cannot name a model"):
        bundle(tmp_path / "run", "../up", into=into)
    monkeypatch.setattr(bundle_module, "MOST_BYTES", 10_000)
    monkeypatch.setattr(bundle_module, "BUNDLES", into)
    with pytest.raises(LBRError, match=r"lbr-toy: its bundle takes 0\.\d MB, and the package takes 0 MB at most"):
        bundle(run)
    bundle(run, into=tmp_path / "any-size")
    shutil.rmtree(work / "represent")
    with pytest.raises(LBRError, match="represent: this stage of the run is not finished"):
        bundle(work, into=into)
    with pytest.raises(LBRError, match="not in training form"):
        bundle(shutil.copytree(run, tmp_path / "released"), into=into)
    build_model(tiny_base("llama")).save_pretrained(str(tmp_path / "full"), create_model_card=False)
    with pytest.raises(LBRError, match="the model has no adapters: every weight was trained"):
        bundle(tmp_path / "full", into=into)
    assert not list(into.iterdir())


def test_weights_that_16_bits_cannot_hold_are_refused(run, tmp_path):
    model = load_model(run.parent / "out-work" / "represent")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1e7 if "lora_B" in name else 1)  # more than 65,504
    with pytest.raises(LBRError, match="adapter in 16 bits, gives other embeddings"):
        release(model, tmp_path / "bundle", adapter_only=True)
    assert not list(tmp_path.iterdir())
