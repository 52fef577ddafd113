"""The leaderboard kit: what it writes, and MTEB's own loader, mock run and submission on it; nothing is downloaded."""

import ast
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.run import evaluate_task
from lbr_st.evaluation.scores import write_record
from lbr_st.evaluation.systems import embedding_system, truncated
from lbr_st.model.build import build_model
from lbr_st.publish import leaderboard
from lbr_st.publish.card import CardInfo
from lbr_st.publish.stock import release
from lbr_st.recipe import DataConfig, Recipe, save_recipe

mteb = pytest.importorskip("mteb")

COMMIT = "0123456789abcdef" * 2 + "01234567"
NAME = "some-org/tiny"
TEXTS = ["an acid", "the base of a salt and an ester"]
TOY = RetrievalSet(
    name="toy",
    corpus={f"d{i}": f"the {word} and its salt" for i, word in enumerate(["acid", "base", "ester", "enzyme"])},
    queries={"q0": "an acid", "q1": "an enzyme"},
    qrels={"q0": {"d0": 1}, "q1": {"d3": 1}},
)


@pytest.fixture(scope="module")
def released(tiny_base, tmp_path_factory):
    """A small model in stock form, with a recipe and a card that tell all that is asked."""
    folder = tmp_path_factory.mktemp("release") / "tiny"
    model = build_model(tiny_base("llama"), max_seq_length=24, lora_rank=4, projection_dim=8)
    recipe = Recipe(name="tiny", data=DataConfig(source="chebi"))
    release(model, folder, info=CardInfo("tiny", recipe=recipe, licence="apache-2.0", language="en"))
    return folder


@pytest.fixture(scope="module")
def scores(released, tmp_path_factory):
    """What an evaluation left: a public task, a local one, one of local data under a public name, and others."""
    output = tmp_path_factory.mktemp("scores")
    system = embedding_system(SentenceTransformer(str(released), device="cpu"), "any/name")
    public, pretended = retrieval_task(TOY), retrieval_task(TOY)
    dataset = mteb.get_task("SciFact").metadata.dataset
    public.metadata = public.metadata.model_copy(update={"name": "SciFact", "dataset": dataset})
    pretended.metadata = pretended.metadata.model_copy(update={"name": "NFCorpus"})
    for task in (public, pretended, retrieval_task(TOY)):
        score = evaluate_task(system, task, output_folder=output)
    [short] = truncated(system, [4])
    evaluate_task(short, retrieval_task(TOY), output_folder=output)
    write_record(output / "per_query" / "any__other" / "r" / "toy.json", replace(score, digest="0" * 40, model="a/b"))
    write_record(output / "per_query" / "any__name" / "open" / "STS12.json", replace(score, date=""))
    return output


@pytest.fixture(scope="module")
def kit(released, scores, tmp_path_factory):
    """A whole submission, mock run and all."""
    folder = tmp_path_factory.mktemp("kit")
    return leaderboard.submission(released, org="some-org", output=folder, results=scores, contacts=["someone"])


@pytest.fixture
def quick(monkeypatch):
    """The mock run, passed without being run."""
    monkeypatch.setattr(leaderboard, "mock_run", lambda *_: (28, {}, "report\n"))
    return leaderboard.submission


def test_every_field_is_filled_from_the_release(kit, released):
    meta = kit.meta
    sizes = {key: tensor.numel() for path in released.rglob("*.safetensors") for key, tensor in load_file(path).items()}
    assert (meta.n_parameters, meta.n_embedding_parameters) == (sum(sizes.values()), sizes["embed_tokens.weight"])
    assert re.fullmatch(r"[0-9a-f]{40}", meta.revision)
    assert meta.loader is mteb.models.SentenceTransformerEncoderWrapper
    assert "2601.11124" in meta.citation
    expected = {
        "name": NAME,
        "max_tokens": 24,
        "embed_dim": 8,
        "loader_kwargs": {"model_prompts": {"query": "query: ", "document": "document: "}},
        "use_instructions": True,
        "languages": ["eng-Latn"],
        "license": "apache-2.0",
        "adapted_from": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "training_datasets": set(),
        "framework": ["Sentence Transformers", "PyTorch", "safetensors", "Transformers"],
        "similarity_fn_name": "cosine",
        "reference": f"https://huggingface.co/{NAME}",
        "contacts": ["someone"],
    }
    assert {field: getattr(meta, field) for field in expected} == expected


def test_all_28_mock_tasks_pass(kit, released):
    assert (kit.total, kit.failures) == (28, {})
    report = (kit.folder / "mock_run.md").read_text()
    assert len(re.findall(r"^\| \w*Mock\w+ \| text \| ✓ \|", report, re.M)) == 28
    assert "28 of 28 mock tasks passed" in (kit.folder / "STEPS.md").read_text()
    # What MTEB's wrapper is given is the release, its prompts among it.
    wrapper = kit.meta.loader(str(released), revision=None, **kit.meta.loader_kwargs)
    expected = SentenceTransformer(str(released), device="cpu")
    np.testing.assert_array_equal(wrapper.model.encode_query(TEXTS), expected.encode_query(TEXTS))


def test_a_mock_task_that_fails_or_cannot_run_is_reported(kit, released, monkeypatch):
    from mteb.mocks.mock_run import MockRunResults
    from mteb.results.task_result import TaskError, TaskResult

    statuses = {
        "MockSTSTask": TaskError(task_name="MockSTSTask", exception="ValueError: no\nnumbers"),
        "MockRetrievalTask": TaskError(task_name="MockRetrievalTask", exception="ImportError: install 'x'"),
        "MockClassificationTask": TaskResult.from_disk(next((kit.folder / "results_local").rglob("toy.json"))),
        "MockImageClassificationTask": None,
    }
    monkeypatch.setattr(mteb, "mock_run", lambda _: MockRunResults(model_name=NAME, task_results=statuses))
    total, failures, report = leaderboard.mock_run(kit.meta, released)
    assert (total, set(failures)) == (3, {"MockSTSTask", "MockRetrievalTask"})
    assert "| MockSTSTask | text | ✗ | ValueError: no numbers |" in report


def test_results_are_filed_under_the_revision_and_only_those_of_these_weights(kit):
    assert kit.public == ["SciFact"]
    assert kit.local == ["NFCorpus", "toy"]
    reasons = sorted(line.partition(": ")[2] for line in kit.left_out)
    assert reasons == ["MTEB's loader runs it in float32 and uncut", "other weights or settings", "the run did not end"]
    folder = kit.folder / "results" / "some-org__tiny" / kit.meta.revision
    assert sorted(path.name for path in folder.iterdir()) == ["SciFact.json", "model_meta.json", "run_settings.jsonl"]
    settings = [json.loads(line) for line in (folder / "run_settings.jsonl").read_text().splitlines()]
    assert {entry["task"] for entry in settings} == {"SciFact"}
    found = mteb.ResultCache(kit.folder).load_results(models=[kit.meta], tasks=["SciFact"], include_remote=False)
    [model] = found.model_results
    assert (model.model_name, model.model_revision) == (NAME, kit.meta.revision)
    assert [result.task_name for result in model.task_results] == ["SciFact"]
    kept = json.loads((folder / "model_meta.json").read_text())
    assert (kept["name"], kept["loader"]) == (NAME, "SentenceTransformerEncoderWrapper")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_mtebs_submit_results_takes_the_folder(kit, tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "x")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "x@example.org")
    folder = tmp_path / "kit"
    shutil.copytree(kit.folder, folder)
    (folder / "remote" / "results").mkdir(parents=True)

    def git(*words):
        done = subprocess.run(["git", *words], cwd=folder / "remote", check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    monkeypatch.setattr(mteb.ResultCache, "download_from_remote", lambda self, **_: self.remote_repo_path)
    answer = mteb.ResultCache(folder).submit_results(NAME)
    assert answer["status"] == "ready_for_submission"
    assert answer["models_submitted"] == [(NAME, kit.meta.revision)]
    added = git("show", "--name-only", "--format=").split()
    place = f"results/some-org__tiny/{kit.meta.revision}"
    assert sorted(added) == [f"{place}/{n}" for n in ("SciFact.json", "model_meta.json", "run_settings.jsonl")]


def test_running_it_again_with_the_commit_moves_the_results(kit, released, tmp_path, quick):
    output = tmp_path / "kit"
    shutil.copytree(kit.folder, output)
    # What `mteb run` put there in the meantime.
    before = output / "results" / "some-org__tiny" / kit.meta.revision
    shutil.copyfile(before / "SciFact.json", before / "ArguAna.json")
    shutil.copytree(before, output / "results" / "other__model" / "r")
    made = quick(released, org="some-org", output=output, revision=COMMIT)
    assert made.meta.revision == COMMIT
    after = before.with_name(COMMIT)
    assert not before.exists()
    assert made.public == ["ArguAna", "SciFact"]
    assert made.local == ["NFCorpus", "toy"]
    assert json.loads((after / "model_meta.json").read_text())["revision"] == COMMIT
    assert (output / "results" / "other__model" / "r" / "SciFact.json").is_file()


def test_the_steps_name_everything(kit, released, monkeypatch):
    from mteb.benchmarks.benchmarks import CHEMTEB_V1_1
    from mteb.cli.build_cli import build_cli

    text = (kit.folder / "STEPS.md").read_text()
    assert f"lbr-st submission {released} --org some-org --name tiny --output {kit.folder} --revision " in text
    assert f"mteb submit-results --output-folder {kit.folder} -m {NAME} --create-pr" in text
    benchmark = re.search(rf'mteb run -m {NAME} -b "(.*)" --output-folder', text)[1]
    assert benchmark == CHEMTEB_V1_1.name
    assert "PubChem" in text  # an overlap by origin with ChEBI
    # MTEB's own command line takes these commands.
    for line in re.findall(r"^mteb (.*)$", text, re.M):
        build_cli().parse_args(shlex.split(line))


@pytest.mark.parametrize(("name", "identifier"), [("LBR-chem.v1", "lbr_chem_v1"), ("135m", "_135m")])
def test_the_file_is_python_that_reads_back_equal(released, tmp_path, quick, name, identifier):
    from mteb.models.model_implementations import MODEL_REGISTRY

    recipe = Recipe()
    recipe.data.source = "x'); import os #.jsonl"  # from a stranger's recipe, it is text there and nothing else
    made = quick(edited(released, tmp_path / "m", recipe), org="o", name=name, output=tmp_path / "kit")
    assert made.meta_file.name == f"{identifier}_models.py"
    tree = ast.parse(made.meta_file.read_text())
    assert [type(node) for node in tree.body] == [ast.ImportFrom, ast.ImportFrom, ast.Assign]
    assert tree.body[-1].targets[0].id == identifier
    MODEL_REGISTRY[f"o/{name}"] = made.meta
    assert mteb.get_model_meta(f"o/{name}", made.meta.revision) == made.meta
    del MODEL_REGISTRY[f"o/{name}"]


def test_memory_and_type_follow_the_weights(released):
    model = SentenceTransformer(str(released), device="cpu")
    model[0].model.resize_token_embeddings(100_000, mean_resizing=False)
    given = {"name": NAME, "revision": COMMIT}
    meta = leaderboard.model_meta(model, released, Recipe(), given)
    assert meta.n_embedding_parameters == 100_000 * 32
    assert meta.memory_usage_mb == meta.calculate_memory_usage_mb() == 12  # MTEB's own way, for float32
    halved = leaderboard.model_meta(model.to(torch.bfloat16), released, Recipe(), given)
    assert halved.memory_usage_mb == 6
    assert halved.output_dtypes.value == "bfloat16"
    contrastive = Recipe()
    contrastive.learn.enabled = False
    assert leaderboard.model_meta(model, released, contrastive, given).citation is None


def test_training_tasks_are_found_by_the_names_of_sources(tmp_path):
    tasks_of, training_sources = leaderboard.tasks_of, leaderboard.training_sources
    assert tasks_of(["mteb/scifact"]) == tasks_of(["BeIR/scifact"]) == tasks_of(["scifact.jsonl"]) == {"SciFact"}
    assert tasks_of(["trec-covid", "mteb/nfcorpus"]) == {"TRECCOVID", "NFCorpus"}
    assert tasks_of(["chebi", "my/own"]) == set()
    recipe = Recipe()
    (tmp_path / "SciFact").mkdir()
    recipe.data.source, recipe.data.texts = str(tmp_path / "SciFact"), "mteb/nfcorpus"
    assert training_sources(recipe) == ["SciFact", "mteb/nfcorpus"]  # no path of this machine


def edited(released, folder, recipe="keep", **card):
    """A copy of the release with another recipe (None: without) and another card's header."""
    shutil.copytree(released, folder)
    if recipe is None:
        (folder / "recipe.yaml").unlink()
    elif recipe != "keep":
        save_recipe(recipe, folder / "recipe.yaml")
    text = (folder / "README.md").read_text()
    for key, value in card.items():
        text = re.sub(rf"^{key}:.*\n(- .*\n)*", "" if value is None else f"{key}: {value}\n", text, count=1, flags=re.M)
    (folder / "README.md").write_text(text)
    return folder


def test_what_the_folder_does_not_tell_must_be_given(released, tmp_path, tiny_base, quick):
    recipe = Recipe()
    recipe.model.base = tiny_base("llama")
    bare = edited(released, tmp_path / "bare", recipe, language=None, license=None)
    given = {}
    for option, value in {"languages": ["deu-Latn"], "license": "mit", "adapted_from": "some/base"}.items():
        with pytest.raises(LBRError, match="--" + option.replace("_", "-")):
            quick(bare, org="o", output=tmp_path / "out", **given)
        given[option] = value
    assert not (tmp_path / "out").exists()
    meta = quick(bare, org="o", output=tmp_path / "out", **given).meta
    assert {option: getattr(meta, option) for option in given} == given

    embedded = edited(released, tmp_path / "embedded", license=None)
    assert quick(embedded, org="o", output=tmp_path / "e").meta.license == "apache-2.0"  # the base's

    unknown = edited(released, tmp_path / "unknown", None)
    with pytest.raises(LBRError, match="--training-datasets"):
        quick(unknown, org="o", output=tmp_path / "u", adapted_from="some/base")
    made = quick(unknown, org="o", output=tmp_path / "u", adapted_from="some/base", training_datasets=["SciFact"])
    assert made.meta.training_datasets == {"SciFact"}
    assert "SciFact" in (tmp_path / "u" / "STEPS.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "main"}, "'main' is no commit"),
        ({"license": "my own"}, "--license"),
        ({"training_datasets": ["scifact"]}, "no task 'scifact'"),
        ({"adapted_from": "some-org/tiny"}, "adapted from itself"),
        ({"results": "nowhere"}, "no results here"),
    ],
)
def test_wrong_values_are_refused_in_plain_words(released, tmp_path, quick, options, message):
    with pytest.raises(LBRError, match=re.escape(message)):
        quick(released, **{"org": "some-org", "output": tmp_path / "out", **options})


def test_only_a_release_is_taken_and_nothing_foreign_is_written_over(released, tiny_base, tmp_path, quick):
    training = tmp_path / "training"
    build_model(tiny_base("llama"), max_seq_length=24, lora_rank=4).save_pretrained(str(training))
    with pytest.raises(LBRError, match=f"lbr-st release {re.escape(str(training))}"):
        quick(training, org="o", output=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("my own")
    with pytest.raises(LBRError, match="already exists"):
        quick(released, org="o", output=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("failures", "status"), [({}, 0), ({"MockSTSTask": "broken"}, 1)])
def test_command(released, scores, tmp_path, monkeypatch, capsys, failures, status):
    monkeypatch.setattr(leaderboard, "mock_run", lambda *_: (28, failures, "report\n"))
    monkeypatch.chdir(tmp_path)  # where there is no folder "results"
    words = ["submission", str(released), "--org", "some-org", "--revision", COMMIT, "--languages", "[eng-Latn]"]
    assert main(words) == status
    printed = capsys.readouterr().out
    assert f"{NAME} at revision {COMMIT}.\n" in printed
    assert f"{28 - len(failures)} of 28 mock tasks passed" in printed
    assert ("MockSTSTask failed: broken" in printed) == bool(failures)
    assert Path("submission/tiny_models.py").is_file()
    assert main([*words, "--output", "more", "--results", str(scores)]) == status
    assert "scores for the leaderboard: 1 (SciFact)" in capsys.readouterr().out
