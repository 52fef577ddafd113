"""Run data are made once, found wherever their folder is, and made again when anything they depend on changes."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import datasets
import pytest

from lbr_st import pipeline
from lbr_st.data.beir import RetrievalSet
from lbr_st.domains.definitions import DomainTask
from lbr_st.errors import LBRError
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig
from lbr_st.training import data as run_data
from lbr_st.training.data import evaluation_set, prepare, read_sources, without_evaluation
from lbr_st.training.data import pairs_to_learn as learn_pairs


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


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

        for name in ("read_sources", "without_evaluation", "learn_pairs"):
            monkeypatch.setattr(run_data, name, never)

    return from_now


@pytest.fixture
def made(monkeypatch):
    """Count how often the data are made."""
    count = []
    real = run_data.read_sources
    monkeypatch.setattr(run_data, "read_sources", lambda recipe: count.append(1) or real(recipe))
    return count


def contents(data):
    tables = [table and table[:] for table in (data.pairs, data.learn_pairs, data.held_out)]
    return [*tables, data.test, data.licences, data.contamination]


def left_in(folder):
    return [path.name for path in folder.iterdir() if path.name != ".prepared.lock"]


def test_it_is_what_the_sources_and_the_check_give(recipe, tmp_path):
    found = prepare(recipe, tmp_path / "data")
    sources = read_sources(recipe)
    tables, reports = without_evaluation(recipe, sources)
    train, held_out = learn_pairs(recipe, tables)
    assert found.pairs[:] == tables["pairs"][:]
    assert (found.learn_pairs[:], found.held_out[:]) == (train[:], held_out[:])
    assert found.test == sources.test == evaluation_set(recipe)
    assert list(found.test.corpus) == list(sources.test.corpus)
    assert (found.licences, found.contamination) == (sources.licences, reports)
    # Memory-mapped, from the folder itself.
    for table in (found.pairs, found.learn_pairs, found.held_out):
        assert all(file["filename"].startswith(str(tmp_path / "data" / "prepared")) for file in table.cache_files)
        assert table.cache_files
    assert left_in(tmp_path / "data") == ["prepared"]


def test_a_second_run_reads_nothing(recipe, tmp_path, nothing_is_read, capsys):
    recipe.data.contamination = "report"
    first = contents(prepare(recipe, tmp_path / "data"))
    assert "Reading" in capsys.readouterr().err
    nothing_is_read()
    assert contents(prepare(recipe, tmp_path / "data")) == first
    said = capsys.readouterr().err
    assert "prepared before" in said
    assert "Reading" not in said


def test_what_was_dropped_is_said_again(tmp_path, capsys, nothing_is_read):
    pairs = [*rows(), {"query": "thing 3!", "document": "another thing altogether, which is of the number three"}]
    recipe = Recipe(data=DataConfig(source=str(write_lines(tmp_path / "pairs.jsonl", pairs))))
    recipe.data.texts = str(write_lines(tmp_path / "texts.jsonl", [{"text": row["document"]} for row in rows()]))
    prepare(recipe, tmp_path / "data")
    first = capsys.readouterr().err.splitlines()[1:]
    assert "texts of texts.jsonl repeat" in first[-1]
    nothing_is_read()
    prepare(recipe, tmp_path / "data")
    assert capsys.readouterr().err.splitlines()[1:] == first


def test_the_evaluation_set_is_read_only_if_asked_for(recipe, tmp_path):
    prepare(recipe, tmp_path / "data")
    (tmp_path / "data" / "prepared" / "evaluation.json").write_text("x" * 9)
    found = prepare(recipe, tmp_path / "data")
    with pytest.raises(ValueError, match="Expecting value"):
        found.test


def test_a_copied_folder_needs_no_source(recipe, source, tmp_path, nothing_is_read):
    first = contents(prepare(recipe, tmp_path / "data"))
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "data")
    source.unlink()
    nothing_is_read()
    assert contents(prepare(recipe, tmp_path / "elsewhere")) == first


def test_another_source_that_is_missing_is_missed(recipe, source, tmp_path):
    prepare(recipe, tmp_path / "data")
    recipe.data.source = str(source.with_name("other.jsonl"))
    with pytest.raises(LBRError, match="no such file"):
        prepare(recipe, tmp_path / "data")


def test_neither_path_nor_time_of_a_source_matter(recipe, source, tmp_path, made):
    prepare(recipe, tmp_path / "data")
    os.utime(source, (1, 1))
    prepare(recipe, tmp_path / "data")
    recipe.data.source = str(shutil.copytree(source.parent, tmp_path / "moved") / source.name)
    prepare(recipe, tmp_path / "data")
    assert len(made) == 1


def test_changed_content_is_read_again(recipe, source, tmp_path, made):
    before = prepare(recipe, tmp_path / "data")
    state = source.stat()
    source.write_text(source.read_text().replace("salt", "SALT"))
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
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


def scramble(folder):
    path = folder / "pairs" / "data-00000-of-00001.arrow"
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("damage", [scramble, lambda folder: (folder / "prepared.json").unlink()])
def test_what_cannot_be_read_is_made_again(recipe, tmp_path, damage):
    first = contents(prepare(recipe, tmp_path / "data"))
    damage(tmp_path / "data" / "prepared")
    assert contents(prepare(recipe, tmp_path / "data")) == first


def test_a_run_that_is_killed_leaves_nothing_half_made(recipe, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_data, "save_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, tmp_path / "data")
    assert left_in(tmp_path / "data") == []
    monkeypatch.undo()
    for name in (".reading.old", ".prepared.old.partial"):  # no chance to tidy up
        (tmp_path / "data" / name).mkdir()
    prepare(recipe, tmp_path / "data")
    assert left_in(tmp_path / "data") == ["prepared"]


def test_processes_of_one_run_make_them_once(recipe, tmp_path, made):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: contents(prepare(recipe, tmp_path / "data")), range(3)))
    assert len(made) == 1
    assert found[0] == found[1] == found[2]


def test_a_beir_folder_is_known_by_all_its_files(tmp_path, made):
    folder = tmp_path / "beir"
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": row["document"]} for n, row in enumerate(rows(30))])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": row["query"]} for n, row in enumerate(rows(30))])
    for split, numbers in {"train": range(20), "test": range(20, 30)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers)]
        (folder / "qrels").mkdir(exist_ok=True)
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines))
    recipe = Recipe(data=DataConfig(source=str(folder)), learn=LearnConfig(pairs=["reconstruct"]))
    assert len(prepare(recipe, tmp_path / "data").pairs) == 20
    prepare(recipe, tmp_path / "data")
    with (folder / "qrels" / "train.tsv").open("a") as file:
        file.write("\nq0\td1\t1")
    assert len(prepare(recipe, tmp_path / "data").pairs) == 21
    assert len(made) == 2
    shutil.rmtree(folder)
    assert len(prepare(recipe, tmp_path / "data").pairs) == 21


def test_a_hub_dataset_is_asked_for_once(tmp_path, monkeypatch):
    asked = []

    def load(name, **options):
        asked.append(options["split"])
        return datasets.Dataset.from_list(rows())

    monkeypatch.setattr(datasets, "load_dataset", load)
    recipe = Recipe(data=DataConfig(source="some/set"))
    first = contents(prepare(recipe, tmp_path / "data"))
    assert contents(prepare(recipe, tmp_path / "data")) == first
    recipe.data.split = "more"
    prepare(recipe, tmp_path / "data")
    assert asked == ["train", "more"]


def test_a_domain_task_is_known_by_its_wheels(tmp_path, monkeypatch, made):
    corpus = {f"d{n}": row["document"] for n, row in enumerate(rows(5))}
    test = RetrievalSet("toy-test", corpus, {"q": "thing 0"}, {"q": {"d0": 1}})
    pairs = datasets.Dataset.from_list(rows()[5:])
    texts = pairs.select_columns(["document"]).rename_column("document", "text")
    task = DomainTask(test, test, pairs, texts, "free")
    wheels = ["a"]
    monkeypatch.setattr(run_data, "DOMAIN_TASKS", {"toy": lambda: task})
    monkeypatch.setattr(run_data, "domain_task", lambda name: task)
    monkeypatch.setattr(run_data, "pinned_wheels", lambda name: list(wheels))
    recipe = Recipe(data=DataConfig(source="toy"))
    for _ in range(2):
        found = prepare(recipe, tmp_path / "data")
        assert (found.licences, len(found.pairs), found.test.name) == (["free"], 75, "toy-test")
    wheels.append("b")
    prepare(recipe, tmp_path / "data")
    assert len(made) == 2
    recipe.data.also = ["other"]
    monkeypatch.setattr(run_data, "DOMAIN_TASKS", {"toy": lambda: task, "other": lambda: task})
    found = prepare(recipe, tmp_path / "data")
    assert len(made) == 3
    assert found.sources["also other"] == {"name": "other", "content": ["a", "b"]}


def test_no_table_holds_a_path_of_the_machine(tmp_path):
    csv = tmp_path / "pairs.csv"
    csv.write_text("query,document\n" + "".join(f'{row["query"]},"{row["document"]}"\n' for row in rows()))
    recipe = Recipe(data=DataConfig(source=str(csv)))
    prepare(recipe, tmp_path / "data")
    kept = [path for path in (tmp_path / "data" / "prepared").glob("*/*") if path.is_file()]
    assert len(kept) == 9
    assert not [path for path in kept if str(tmp_path).encode() in path.read_bytes()]


def test_a_moved_run_goes_on_without_its_source(tiny_base, recipe, source, tmp_path, nothing_is_read):
    recipe.precision, recipe.evaluate = "float32", EvaluateConfig(enabled=False)
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
    assert cards[0].splitlines()[:20] == cards[1].splitlines()[:20]


def test_a_run_begun_again_with_another_recipe_keeps_its_data(tiny_base, recipe, tmp_path, made, monkeypatch):
    recipe.evaluate = EvaluateConfig(enabled=False)
    recipe.model.base = tiny_base("llama")
    stages = []
    monkeypatch.setattr(pipeline, "learn", lambda *args, **options: stages.append(options["cache_dir"]) or [])
    monkeypatch.setattr(pipeline, "represent", lambda *args, **options: stages.append(options["cache_dir"]) or [])
    pipeline.run(recipe, tmp_path / "out")
    recipe.learn.learning_rate = 0.5
    pipeline.run(recipe, tmp_path / "out", overwrite=True)
    assert len(made) == 1
    assert stages == [tmp_path / "out-work" / "data"] * 4


def test_a_stage_alone_keeps_its_data_beside_its_output(tiny_base, recipe, tmp_path, made, monkeypatch):
    recipe.model.base = tiny_base("llama")
    recipe.learn.enabled = False  # the command is what counts
    monkeypatch.setattr(pipeline, "learn", lambda model, pairs, config, **options: [])
    monkeypatch.setattr(pipeline, "represent", lambda model, pairs, config, **options: [])
    for _ in range(2):
        pipeline.run_learn(recipe, tmp_path / "a", overwrite=True)
    assert (tmp_path / "a-data" / "prepared" / "learn").is_dir()
    for _ in range(2):
        pipeline.run_represent(recipe, str(tmp_path / "a"), tmp_path / "b", overwrite=True)
    assert not (tmp_path / "b-data" / "prepared" / "learn").is_dir()
    assert len(made) == 2
