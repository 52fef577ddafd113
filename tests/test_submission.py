"""The leaderboard kit: what it writes, and MTEB's own loader, mock run and submission on it; nothing is downloaded."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lbr_st.bases import BASES
from lbr_st.build import build_model
from lbr_st.card import CardInfo
from lbr_st.cli import main
from lbr_st.data.retrieval import RetrievalSet
from lbr_st.errors import LBRError
from lbr_st.evaluation import embedding_system, evaluate_task, retrieval_task, truncated, write_record
from lbr_st.recipe import Recipe, save_recipe
from lbr_st.stages.release import release

pytest.importorskip("mteb")

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
    release(model, folder, info=CardInfo("tiny", recipe=Recipe(name="tiny"), licence="apache-2.0", language="en"))
    return folder


@pytest.fixture(scope="module")
def scores(released, tmp_path_factory):
    """What an evaluation left: a public task, a local one, one of local data under a public name, and others."""
    import mteb
    from sentence_transformers import SentenceTransformer

    output = tmp_path_factory.mktemp("scores")
    system = embedding_system(SentenceTransformer(str(released), device="cpu"), "any/name")
    public = retrieval_task(TOY)
    public.metadata = public.metadata.model_copy(
        update={"name": "SciFact", "dataset": mteb.get_task("SciFact").metadata.dataset}
    )
    pretended = retrieval_task(TOY)
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
    from lbr_st.submission import submission

    return submission(
        released, org="some-org", output=tmp_path_factory.mktemp("kit"), results=scores, contacts=["someone"]
    )


@pytest.fixture
def registry():
    """MTEB's registry, which forgets afterwards what a test put in."""
    from mteb.models.model_implementations import MODEL_REGISTRY

    before = dict(MODEL_REGISTRY)
    yield MODEL_REGISTRY
    MODEL_REGISTRY.clear()
    MODEL_REGISTRY.update(before)


@pytest.fixture
def quick(monkeypatch):
    """The mock run, passed without being run."""
    import lbr_st.submission as module

    monkeypatch.setattr(module, "mock_run", lambda *_: module.MockRun(28, {}, "report\n"))
    return module.submission


def test_every_field_is_filled_from_the_release(kit, released):
    import mteb
    from safetensors.torch import load_file

    from lbr_st.submission import load_meta

    meta = load_meta(kit.meta_file)
    sizes = {key: tensor.numel() for path in released.rglob("*.safetensors") for key, tensor in load_file(path).items()}
    assert meta.n_parameters == sum(sizes.values())
    assert meta.n_embedding_parameters == sizes["embed_tokens.weight"]
    assert (meta.name, meta.revision) == (NAME, kit.digest)
    assert re.fullmatch(r"[0-9a-f]{40}", kit.digest)
    assert (meta.max_tokens, meta.embed_dim) == (24, 8)
    assert meta.loader is mteb.models.SentenceTransformerEncoderWrapper
    assert meta.loader_kwargs == {"model_prompts": {"query": "query: ", "document": "document: "}}
    assert meta.use_instructions is True
    assert meta.languages == ["eng-Latn"]
    assert meta.license == "apache-2.0"
    assert meta.adapted_from == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert meta.training_datasets == set()
    assert meta.framework == ["Sentence Transformers", "PyTorch", "safetensors", "Transformers"]
    assert meta.similarity_fn_name.value == "cosine"
    assert meta.reference == f"https://huggingface.co/{NAME}"
    assert "2601.11124" in meta.citation
    assert meta.contacts == ["someone"]
    assert meta.get_training_datasets() == set()
    assert all(base.hub_id.count("/") == 1 for base in BASES.values())


def test_mtebs_own_loader_loads_the_model_from_the_file(kit, released, registry, tmp_path, monkeypatch):
    import mteb
    from sentence_transformers import SentenceTransformer

    from lbr_st.submission import load_meta, register

    assert NAME not in registry  # the mock run put it back as it was
    with pytest.raises(KeyError):
        mteb.get_model_meta(NAME)
    register(kit.meta_file)
    assert mteb.get_model_meta(NAME, kit.digest) == load_meta(kit.meta_file)
    (tmp_path / "some-org").mkdir()
    (tmp_path / NAME).symlink_to(released)
    monkeypatch.chdir(tmp_path)
    model = mteb.get_model(NAME)
    assert type(model) is mteb.models.SentenceTransformerEncoderWrapper
    assert model.mteb_model_meta.revision == kit.digest
    expected = SentenceTransformer(str(released), device="cpu")
    np.testing.assert_array_equal(model.model.encode_query(TEXTS), expected.encode_query(TEXTS))
    np.testing.assert_array_equal(model.model.encode_document(TEXTS), expected.encode_document(TEXTS))


def test_all_28_mock_tasks_pass(kit):
    assert (kit.mock.passed, kit.mock.total, kit.mock.ok) == (28, 28, True)
    report = (kit.folder / "mock_run.md").read_text()
    assert report.startswith(f"# MTEB Mock-Run Results for `{NAME}`")
    assert len(re.findall(r"^\| \w*Mock\w+ \| text \| ✓ \|", report, re.M)) == 28
    assert "28 of 28 passed" in (kit.folder / "STEPS.md").read_text()


def test_a_mock_task_that_fails_or_cannot_run_is_reported(kit, released, monkeypatch):
    import mteb
    from mteb.mocks.mock_run import MockRunResults
    from mteb.results.task_result import TaskError, TaskResult

    from lbr_st.submission import mock_run

    done = TaskResult.from_disk(kit.folder / "results_local" / "some-org__tiny" / kit.digest / "toy.json")
    statuses = {
        "MockSTSTask": TaskError(task_name="MockSTSTask", exception="ValueError: no\nnumbers"),
        "MockRetrievalTask": TaskError(task_name="MockRetrievalTask", exception="ImportError: install 'x'"),
        "MockClassificationTask": done,
        "MockImageClassificationTask": None,
    }
    monkeypatch.setattr(mteb, "mock_run", lambda _: MockRunResults(model_name=NAME, task_results=statuses))
    found = mock_run(kit.meta_file, released)
    assert (found.total, found.passed, found.ok) == (3, 1, False)
    assert set(found.failures) == {"MockSTSTask", "MockRetrievalTask"}
    assert "| MockSTSTask | text | ✗ | ValueError: no numbers |" in found.report


def test_results_are_filed_under_the_revision_and_only_those_of_these_weights(kit):
    import mteb

    from lbr_st.submission import load_meta

    assert kit.filed.public == ["SciFact"]
    assert kit.filed.local == ["NFCorpus", "toy"]
    reasons = sorted(line.partition(": ")[2] for line in kit.filed.left_out)
    assert reasons == ["not run as MTEB's loader runs it", "other weights or settings", "the run did not end"]
    folder = kit.folder / "results" / "some-org__tiny" / kit.digest
    assert sorted(path.name for path in folder.iterdir()) == ["SciFact.json", "model_meta.json", "run_settings.jsonl"]
    settings = [json.loads(line) for line in (folder / "run_settings.jsonl").read_text().splitlines()]
    assert {entry["task"] for entry in settings} == {"SciFact"}
    meta = load_meta(kit.meta_file)
    found = mteb.ResultCache(kit.folder).load_results(models=[meta], tasks=["SciFact"], include_remote=False)
    [model] = found.model_results
    assert (model.model_name, model.model_revision) == (NAME, kit.digest)
    assert [result.task_name for result in model.task_results] == ["SciFact"]
    kept = json.loads((folder / "model_meta.json").read_text())
    assert kept["loader"] == "SentenceTransformerEncoderWrapper"
    assert {key: kept[key] for key in ("name", "revision", "n_parameters", "license", "contacts")} == {
        key: getattr(meta, key) for key in ("name", "revision", "n_parameters", "license", "contacts")
    }


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_mtebs_submit_results_takes_the_folder(kit, tmp_path, monkeypatch):
    import mteb

    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "x")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "x@example.org")
    folder = tmp_path / "kit"
    shutil.copytree(kit.folder, folder)
    (folder / "remote" / "results").mkdir(parents=True)
    (folder / "remote" / "results" / "README.md").write_text("results")

    def git(*words):
        done = subprocess.run(["git", *words], cwd=folder / "remote", check=True, capture_output=True, text=True)
        return done.stdout

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    monkeypatch.setattr(mteb.ResultCache, "download_from_remote", lambda self, **_: self.remote_repo_path)
    answer = mteb.ResultCache(folder).submit_results(NAME)
    assert answer["status"] == "ready_for_submission"
    assert answer["models_submitted"] == [(NAME, kit.digest)]
    added = git("show", "--name-only", "--format=").split()
    place = f"results/some-org__tiny/{kit.digest}"
    assert sorted(added) == [f"{place}/{n}" for n in ("SciFact.json", "model_meta.json", "run_settings.jsonl")]


def test_running_it_again_with_the_commit_moves_the_results(kit, released, tmp_path, quick):
    from lbr_st.submission import load_meta

    output = tmp_path / "kit"
    shutil.copytree(kit.folder, output)
    # What `mteb run` put there in the meantime.
    before = output / "results" / "some-org__tiny" / kit.digest
    shutil.copyfile(before / "SciFact.json", before / "ArguAna.json")
    shutil.copytree(before, output / "results" / "other__model" / "r")
    made = quick(released, org="some-org", output=output, revision=COMMIT)
    assert made.published
    assert load_meta(made.meta_file).revision == COMMIT
    after = before.with_name(COMMIT)
    assert not before.exists()
    assert made.filed.public == ["ArguAna", "SciFact"]
    assert made.filed.local == ["NFCorpus", "toy"]
    assert json.loads((after / "model_meta.json").read_text())["revision"] == COMMIT
    assert (output / "results" / "other__model" / "r" / "SciFact.json").is_file()
    steps = (output / "STEPS.md").read_text()
    assert "hf upload" not in steps
    assert "digest" not in made.meta_file.read_text()
    again = quick(released, org="some-org", output=output, revision=COMMIT)
    assert (again.filed.public, again.filed.local) == (made.filed.public, made.filed.local)


def test_the_steps_name_everything(kit, released, monkeypatch):
    from mteb.benchmarks.benchmarks import CHEMTEB_V1_1
    from mteb.cli.build_cli import build_cli

    text = (kit.folder / "STEPS.md").read_text()
    command = f"lbr-st submission {released} --org some-org --name tiny --output {kit.folder} --revision "
    assert command in text
    assert "'--contacts=[someone]'" in text
    assert f"hf upload {NAME} {released} . " in text
    assert f"mteb mock-run -m {NAME}" in text
    assert f"mteb submit-results --output-folder {kit.folder} -m {NAME} --create-pr" in text
    benchmark = re.search(rf'mteb run -m {NAME} -b "(.*)" --output-folder', text)[1]
    assert benchmark == CHEMTEB_V1_1.name
    assert "PubChem" in text  # an overlap by origin with ChEBI
    assert "--public_training_code" in text
    # MTEB's own command line takes these commands.
    for line in re.findall(r"^mteb (.*)$", text, re.M):
        build_cli().parse_args(shlex.split(line))


ODD = {"query": 'say "it"', "document": "it's: \\ \t\n", "STS": "both ' and \"", "Clustering": "größe → "}


@pytest.mark.parametrize("prompts", [{}, {"query": "q: "}, ODD])
def test_the_file_is_laid_out_as_ruff_does_and_reads_back_equal(kit, tmp_path, prompts):
    pytest.importorskip("ruff")
    from mteb.types import OutputDType

    from lbr_st.submission import load_meta
    from lbr_st.submission.meta_file import file_name, identifier, render

    assert file_name("o/LBR-chem.v1") == "lbr_chem_v1_models.py"
    assert identifier("135m") == "model_135m"
    assert identifier("class") == "model_class"
    languages = ["eng-Latn", "deu-Latn", "fra-Latn", "spa-Latn", "ita-Latn", "por-Latn", "nld-Latn"]
    for number in range(len(languages) + 1):
        meta = load_meta(kit.meta_file).model_copy(
            update={
                "loader_kwargs": {"model_prompts": prompts} if prompts else {},
                "languages": languages[:number],
                "training_datasets": {f"Task{n}" for n in range(3 * number)},
                "citation": load_meta(kit.meta_file).citation if number % 2 else None,
                "output_dtypes": OutputDType.BF16 if number % 2 else None,
                "contacts": None,
                "memory_usage_mb": 1234567.0,
            }
        )
        path = tmp_path / f"m{number}_models.py"
        path.write_text(render(meta, {"revision": "why"}), encoding="utf-8")
        assert load_meta(path) == meta
    for words in (["check"], ["format", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--isolated", "--no-cache", str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_memory_and_type_follow_the_weights(released):
    import torch
    from sentence_transformers import SentenceTransformer

    from lbr_st.submission.facts import Given, collect

    model = SentenceTransformer(str(released), device="cpu")
    decoder = model[0].model
    decoder.resize_token_embeddings(100_000, mean_resizing=False)
    given = {"name": NAME, "revision": COMMIT, "given": Given()}
    meta = collect(model, released, Recipe(), **given)
    assert meta.n_embedding_parameters == 100_000 * 32
    assert meta.memory_usage_mb == meta.calculate_memory_usage_mb() == 12  # MTEB's own way, for float32
    assert meta.output_dtypes is None
    halved = collect(model.to(torch.bfloat16), released, Recipe(), **given)
    assert halved.memory_usage_mb == 6
    assert halved.output_dtypes.value == "bfloat16"
    contrastive = Recipe()
    contrastive.learn.enabled = False
    assert collect(model, released, contrastive, **given).citation is None


def test_training_tasks_are_found_by_the_names_of_sources(tmp_path):
    from lbr_st.submission.facts import tasks_of, training_sources

    assert tasks_of(["mteb/scifact"]) == tasks_of(["BeIR/scifact"]) == tasks_of(["scifact.jsonl"]) == {"SciFact"}
    assert tasks_of(["trec-covid", "mteb/nfcorpus"]) == {"TRECCOVID", "NFCorpus"}
    assert tasks_of(["chebi", "my/own"]) == set()
    recipe = Recipe()
    (tmp_path / "SciFact").mkdir()
    recipe.data.source, recipe.data.texts = str(tmp_path / "SciFact"), "mteb/nfcorpus"
    assert training_sources(recipe) == ["SciFact", "mteb/nfcorpus"]  # no path of this machine
    assert training_sources(None) == []


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
    from lbr_st.submission import load_meta

    recipe = Recipe()
    recipe.model.base = tiny_base("llama")
    bare = edited(released, tmp_path / "bare", recipe, language=None, license=None)
    given = {}
    for option, value in [
        ("languages", ["deu-Latn"]),
        ("license", "mit"),
        ("adapted_from", "some/base"),
    ]:
        with pytest.raises(LBRError, match=f"--{option}"):
            quick(bare, org="o", output=tmp_path / "out", **given)
        given[option] = value
    assert not (tmp_path / "out").exists()
    made = quick(bare, org="o", output=tmp_path / "out", **given)
    meta = load_meta(made.meta_file)
    assert (meta.languages, meta.license, meta.adapted_from) == (["deu-Latn"], "mit", "some/base")

    embedded = edited(released, tmp_path / "embedded", license=None)
    assert load_meta(quick(embedded, org="o", output=tmp_path / "e").meta_file).license == "apache-2.0"  # the base's

    unknown = edited(released, tmp_path / "unknown", None)
    with pytest.raises(LBRError, match="--training_datasets"):
        quick(unknown, org="o", output=tmp_path / "u", adapted_from="some/base")
    made = quick(unknown, org="o", output=tmp_path / "u", adapted_from="some/base", training_datasets=["SciFact"])
    assert load_meta(made.meta_file).training_datasets == {"SciFact"}
    assert "SciFact" in (tmp_path / "u" / "STEPS.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "main"}, "'main' is no commit"),
        ({"org": "some/org"}, "org: 'some/org'"),
        ({"name": "a b"}, "--name"),
        ({"license": "my own"}, "--license"),
        ({"languages": ["en"]}, "--languages"),
        ({"release_date": "yesterday"}, "--release_date"),
        ({"reference": "nowhere"}, "--reference"),
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
    with pytest.raises(LBRError, match=r"no modules\.json"):
        quick(tmp_path, org="o", output=tmp_path / "out")
    foreign = edited(released, tmp_path / "foreign")
    listing = (foreign / "modules.json").read_text()
    (foreign / "modules.json").write_text(listing.replace("sentence_transformers.base", "elsewhere"))
    with pytest.raises(LBRError, match=r"has modules that Sentence Transformers lacks: elsewhere\."):
        quick(foreign, org="o", output=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("my own")
    with pytest.raises(LBRError, match="already exists"):
        quick(released, org="o", output=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_card_with_a_broken_header_is_named(released, tmp_path, quick):
    folder = edited(released, tmp_path / "broken")
    (folder / "README.md").write_text("---\nlicense: [apache\n---\n")
    with pytest.raises(LBRError, match=r"README\.md: the card's header cannot be read"):
        quick(folder, org="o", output=tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"meta\.py: is no Python file"),
        ("from mteb import", r"meta\.py: cannot be run: "),
        ("model = 1", r"meta\.py: holds 0 models instead of one"),
    ],
)
def test_a_file_that_is_no_entry_of_the_registry_is_refused(tmp_path, text, message):
    from lbr_st.submission import load_meta

    if text is not None:
        (tmp_path / "meta.py").write_text(text)
    with pytest.raises(LBRError, match=message):
        load_meta(tmp_path / "meta.py")


@pytest.mark.parametrize(("failures", "status"), [({}, 0), ({"MockSTSTask": "broken"}, 1)])
def test_command(released, scores, tmp_path, monkeypatch, capsys, failures, status):
    import lbr_st.submission as module

    monkeypatch.setattr(module, "mock_run", lambda *_: module.MockRun(28, failures, "report\n"))
    monkeypatch.chdir(tmp_path)  # where there is no folder "results"
    words = ["submission", str(released), "--org", "some-org", "--revision", COMMIT, "--languages", "[eng-Latn]"]
    assert main(words) == status
    printed = capsys.readouterr().out
    assert f"{NAME} at revision {COMMIT}\n" in printed
    assert f"{28 - len(failures)} of 28 mock tasks passed" in printed
    assert ("MockSTSTask failed: broken" in printed) == bool(failures)
    assert Path("submission/tiny_models.py").is_file()
    assert main([*words, "--output", "more", "--results", str(scores)]) == status
    assert "scores for the leaderboard: 1 (SciFact)" in capsys.readouterr().out
    assert main([*words, "--results", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
