"""A run's data are kept, found again wherever their folder is, and made again when anything they depend on changes."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import datasets
import pytest
from datasets import Dataset
from run_sources import recipe_for, use_tasks, write_beir, write_lines

from lbr_st import pipeline
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig
from lbr_st.training import data as module
from lbr_st.training.data import (
    evaluation_set,
    pairs_to_learn,
    prepare,
    without_evaluation,
)
from lbr_st.training.sources import read_sources


def rows(count=80):
    about = "the {} of number {} is a salt of an acid. It is {} of {}, which is a base of an ester and of an enzyme."
    return [
        {"query": f"thing {n}", "document": about.format("acid" if n % 2 else "base", n, n * 7, n)}
        for n in range(count)
    ]


@pytest.fixture
def source(tmp_path):
    return write_lines(tmp_path / "source" / "pairs.jsonl", rows())


@pytest.fixture
def recipe(source):
    learn = LearnConfig(pairs=["natural", "reconstruct", "continue"], num_eval_pairs=6)
    return Recipe(data=DataConfig(source=str(source)), learn=learn)


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Return a function from whose call on no source may be read and nothing made of it."""

    def from_now():
        def never(*args, **options):
            raise AssertionError("a source was read")

        for name in ("read_sources", "without_evaluation", "pairs_to_learn"):
            monkeypatch.setattr(module, name, never)

    return from_now


@pytest.fixture
def made(monkeypatch):
    """Count how often the data are made."""
    count = []
    real = module.read_sources
    monkeypatch.setattr(module, "read_sources", lambda recipe: count.append(1) or real(recipe))
    return count


def contents(data):
    tables = [table and table[:] for table in (data.pairs, data.learn_pairs, data.held_out)]
    return [*tables, data.test, data.licences, data.contamination]


def left_in(folder):
    return [path.name for path in folder.iterdir()]


def test_it_is_what_the_sources_and_the_check_give(recipe, tmp_path):
    found = prepare(recipe, tmp_path / "data")
    sources = read_sources(recipe)
    tables, reports = without_evaluation(recipe, sources)
    train, held_out = pairs_to_learn(recipe, tables)
    assert contents(found) == [
        *(table[:] for table in (tables["pairs"], train, held_out)), sources.test, sources.licences, reports
    ]  # fmt: skip
    assert found.test == evaluation_set(recipe)
    # Memory-mapped, from the folder itself.
    for table in (found.pairs, found.learn_pairs, found.held_out):
        assert all(file["filename"].startswith(str(tmp_path / "data" / "prepared")) for file in table.cache_files)
        assert table.cache_files


def test_a_second_run_reads_nothing_and_says_again_what_was_dropped(tmp_path, capsys, nothing_is_read):
    pairs = [*rows(), {"query": "thing 3!", "document": "another thing altogether, which is of the number three"}]
    recipe = recipe_for(write_lines(tmp_path / "pairs.jsonl", pairs))
    recipe.data.texts = str(write_lines(tmp_path / "texts.jsonl", [{"text": row["document"]} for row in rows()]))
    first = contents(prepare(recipe, tmp_path / "data"))
    reading, *dropped = capsys.readouterr().err.splitlines()
    assert "Reading" in reading
    assert "texts of texts.jsonl repeat" in dropped[-1]
    nothing_is_read()
    assert contents(prepare(recipe, tmp_path / "data")) == first
    taken, *again = capsys.readouterr().err.splitlines()
    assert "prepared before" in taken
    assert again == dropped


def test_content_matters_and_neither_path_nor_time(recipe, source, tmp_path, made):
    before = prepare(recipe, tmp_path / "data")
    os.utime(source, (1, 1))
    prepare(recipe, tmp_path / "data")
    recipe.data.source = str(shutil.copytree(source.parent, tmp_path / "moved") / source.name)
    prepare(recipe, tmp_path / "data")
    assert len(made) == 1
    recipe.data.source = str(source)
    source.write_text(source.read_text().replace("salt", "SALT"))
    os.utime(source, (1, 1))
    after = prepare(recipe, tmp_path / "data")
    assert len(made) == 2
    assert "SALT" in after.pairs["document"][0]
    assert "salt" in before.pairs["document"][0]  # who still has the old ones mapped keeps them


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: setattr(recipe, "seed", 1),
        lambda recipe: setattr(recipe.model, "query_prompt", "ask: "),
        lambda recipe: setattr(recipe.data, "contamination", "report"),
        lambda recipe: setattr(recipe.learn, "pairs", ["natural"]),
        lambda recipe: setattr(recipe.learn, "num_eval_pairs", 4),
        lambda recipe: setattr(recipe.learn, "enabled", False),
    ],
)
def test_a_changed_recipe_makes_them_again(recipe, tmp_path, made, change):
    prepare(recipe, tmp_path / "data")
    change(recipe)
    assert prepare(recipe, tmp_path / "data").pairs is not None
    assert len(made) == 2


def test_a_recipe_that_trains_otherwise_on_the_same_takes_them(recipe, tmp_path, nothing_is_read):
    whole = prepare(recipe, tmp_path / "data").test
    nothing_is_read()
    recipe.learn.learning_rate, recipe.represent.max_steps, recipe.model.lora_rank = 1.0, 0, 2
    recipe.evaluate = EvaluateConfig(num_queries=3, num_documents=10)
    assert prepare(recipe, tmp_path / "data").test == whole.slice(3, 10)


def test_pairs_for_stage_1_are_made_only_if_it_is_trained(recipe, tmp_path):
    recipe.learn.enabled = False
    assert prepare(recipe, tmp_path / "a").learn_pairs is None
    assert prepare(recipe, tmp_path / "a", generative=True).learn_pairs is not None
    recipe.learn.enabled, recipe.learn.max_steps, recipe.represent = True, 0, RepresentConfig()
    assert prepare(recipe, tmp_path / "c").learn_pairs is None


def test_what_cannot_be_read_is_made_again(recipe, tmp_path):
    first = contents(prepare(recipe, tmp_path / "data"))
    table = tmp_path / "data" / "prepared" / "pairs" / "data-00000-of-00001.arrow"
    table.write_bytes(b"\0" * table.stat().st_size)
    assert contents(prepare(recipe, tmp_path / "data")) == first
    (tmp_path / "data" / "prepared" / "prepared.json").unlink()
    assert contents(prepare(recipe, tmp_path / "data")) == first


def test_a_run_that_is_killed_leaves_nothing_half_made(recipe, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, tmp_path / "data")
    assert left_in(tmp_path / "data") == []
    monkeypatch.undo()
    (tmp_path / "data" / ".prepared.old.partial").mkdir()  # no chance to tidy up
    prepare(recipe, tmp_path / "data")
    assert left_in(tmp_path / "data") == ["prepared"]


def test_processes_of_one_run_make_them_once(recipe, tmp_path, made):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: contents(prepare(recipe, tmp_path / "data")), range(3)))
    assert len(made) == 1
    assert found[0] == found[1] == found[2]


def test_a_beir_folder_is_known_by_all_its_files(tmp_path, made):
    documents, queries = ([row[column] for row in rows(30)] for column in ("document", "query"))
    folder = write_beir(tmp_path / "beir", documents, queries, {"train": range(20), "test": range(20, 30)})
    recipe = Recipe(data=DataConfig(source=str(folder)), learn=LearnConfig(pairs=["reconstruct"]))
    assert len(prepare(recipe, tmp_path / "data").pairs) == 20
    prepare(recipe, tmp_path / "data")
    with (folder / "qrels" / "train.tsv").open("a") as file:
        file.write("q0\td1\t1\n")
    assert len(prepare(recipe, tmp_path / "data").pairs) == 21
    assert len(made) == 2


def test_a_hub_dataset_is_asked_for_once(tmp_path, monkeypatch):
    asked = []
    found = Dataset.from_list(rows())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, **options: asked.append(split) or found)
    recipe = recipe_for("some/set")
    first = contents(prepare(recipe, tmp_path / "data"))
    assert contents(prepare(recipe, tmp_path / "data")) == first
    recipe.data.split = "more"
    prepare(recipe, tmp_path / "data")
    assert asked == ["train", "more"]


def test_a_domain_task_is_known_by_its_wheels(toy_task, tmp_path, monkeypatch, made):
    wheels = ["a"]
    monkeypatch.setattr(module, "pinned_wheels", lambda name: list(wheels))
    recipe = recipe_for("toy")
    for _ in range(2):
        found = prepare(recipe, tmp_path / "data")
        assert (found.licences, len(found.pairs), found.test.name) == (["toy: free"], 6, "toy-test")
    wheels.append("b")
    prepare(recipe, tmp_path / "data")
    assert len(made) == 2
    recipe.data.also = ["other"]
    use_tasks(monkeypatch, toy=toy_task, other=toy_task)
    found = prepare(recipe, tmp_path / "data")
    assert len(made) == 3
    assert found.sources["also other"] == {"name": "other", "content": ["a", "b"]}


def test_a_moved_run_resumes_without_its_source(tiny_base, recipe, source, tmp_path, nothing_is_read):
    recipe.name, recipe.precision, recipe.evaluate = "toy", "float32", EvaluateConfig(enabled=False)
    recipe.model = ModelConfig(base=tiny_base("llama"), max_seq_length=48, lora_rank=4, lora_alpha=8)
    recipe.learn.max_steps, recipe.learn.batch_size, recipe.learn.warmup_steps = 2, 4, 1
    recipe.represent = RepresentConfig(max_steps=2, batch_size=4, warmup_steps=1)
    pipeline.run(recipe, tmp_path / "out")
    shutil.move(tmp_path / "out-work", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "represent")
    source.unlink()
    nothing_is_read()
    pipeline.run(recipe, tmp_path / "again", work_folder=tmp_path / "moved")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]
    # Nor does the card lack anything.
    cards = [(tmp_path / name / "README.md").read_text() for name in ("out", "again")]
    assert "## Training data against evaluation data" in cards[1]
    assert cards[0].replace('"out"', '"again"').splitlines()[:20] == cards[1].splitlines()[:20]


@pytest.fixture
def stages(monkeypatch):
    """Where the two stages, which train nothing here, are told to keep their tokens."""
    told = []
    for name in ("learn", "represent"):
        monkeypatch.setattr(pipeline, name, lambda *args, **options: told.append(options["cache_dir"]) or [])
    return told


def test_a_run_begun_again_with_another_recipe_keeps_its_data(tiny_base, recipe, tmp_path, made, stages):
    recipe.evaluate = EvaluateConfig(enabled=False)
    recipe.model.base = tiny_base("llama")
    pipeline.run(recipe, tmp_path / "out")
    recipe.learn.learning_rate = 0.5
    pipeline.run(recipe, tmp_path / "out", overwrite=True)
    assert len(made) == 1
    assert stages == [tmp_path / "out-work" / "data"] * 4


def test_a_stage_alone_keeps_its_data_next_to_its_output(tiny_base, recipe, tmp_path, made, stages):
    recipe.model.base = tiny_base("llama")
    recipe.learn.enabled = False  # the command is what counts
    for _ in range(2):
        pipeline.run_learn(recipe, tmp_path / "a", overwrite=True)
    assert (tmp_path / "a-data" / "prepared" / "learn").is_dir()
    for _ in range(2):
        pipeline.run_represent(recipe, str(tmp_path / "a"), tmp_path / "b", overwrite=True)
    assert not (tmp_path / "b-data" / "prepared" / "learn").is_dir()
    assert len(made) == 2
