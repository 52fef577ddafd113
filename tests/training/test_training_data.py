"""What a recipe trains on: rows that repeat the evaluation are dropped, refused or reported, from every source.

What was made is kept, found again wherever its folder is, and made again when anything it depends on changes.
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset

from lbr_st import pipeline
from lbr_st.data import lines
from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.data.texts import normalise
from lbr_st.domains.definitions import DomainTask
from lbr_st.errors import LBRError
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig
from lbr_st.training import data as module
from lbr_st.training.data import (
    evaluation_set,
    pairs_to_learn,
    prepare,
    read_sources,
    recipe_columns,
    without_evaluation,
)

THINGS = ["acid", "base", "salt", "ester", "enzyme", "protein", "metal", "oxide", "sugar", "lipid", "amine", "ketone"]


def definition(number, last="said"):
    """Return 19 words, of which twelve stand in no other number's; ``last`` makes a near duplicate."""
    middle = " ".join(f"{thing}{number}" for thing in THINGS)
    return f"this is what of {middle} can be {last}"


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def write_beir(folder, documents, queries, splits):
    """Write a BEIR folder in which query n of a split is answered by document n."""
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(documents)])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": text} for n, text in enumerate(queries)])
    (folder / "qrels").mkdir()
    for split, numbers in splits.items():
        rows = "".join(f"q{n}\td{n}\t1\n" for n in numbers)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


@pytest.fixture
def beir(tmp_path):
    """A BEIR folder: q0, q1 are test, q2 is dev, q3 … q11 are train; four training rows repeat test or dev."""
    documents = [definition(n) for n in range(12)]
    queries = [f"question about {n}" for n in range(12)]
    queries[3] = "Question   ABOUT 0!"  # the query q0
    documents[4] = definition(1, "told")  # nearly the document d1
    documents[5] = f"it was said before: {definition(0)}, and so it is"  # contains the document d0
    queries[6] = queries[2].upper()  # the dev query
    return write_beir(tmp_path / "beir", documents, queries, {"test": range(2), "dev": [2], "train": range(3, 12)})


def recipe_for(source, **data):
    return Recipe(data=DataConfig(source=str(source), **data))


def training_data(recipe):
    sources = read_sources(recipe)
    tables, reports = without_evaluation(recipe, sources)
    found = {"pairs": None, "texts": None, "records": None, **tables}
    return SimpleNamespace(tables=tables, contamination=reports, licences=sources.licences, **found)


def numbers(pairs):
    return [int(query.split()[-1].strip("!")) for query in pairs["query"]]


# --- kept apart from the evaluation -----------------------------------------------------------------------------------


def test_drop_leaves_the_harmful_rows_out_and_says_so(beir, capsys):
    data = training_data(recipe_for(beir))
    assert numbers(data.pairs) == [7, 8, 9, 10, 11]
    assert list(data.texts["text"]) == list(data.pairs["document"])
    [report] = data.contamination
    assert report.dropped
    assert report.rows == [0, 1, 2, 3]
    assert [one["name"] for one in report.against] == ["beir-test", "beir-dev"]
    assert "4 of 9 training rows of pairs of beir repeat" in capsys.readouterr().err


def test_refuse_stops_with_counts_and_samples(beir):
    with pytest.raises(LBRError, match=r"4 of 9 .* d1 of beir-test") as caught:
        training_data(recipe_for(beir, contamination="refuse"))
    assert caught.value.where == "data.contamination"


def test_report_keeps_the_rows_and_says_so(beir, capsys):
    data = training_data(recipe_for(beir, contamination="report"))
    assert len(data.pairs) == 9
    [report] = data.contamination
    assert (report.dropped, report.rows) == (False, [0, 1, 2, 3])
    assert "they were kept" in capsys.readouterr().err


@pytest.mark.parametrize("policy", ["drop", "refuse", "report"])
def test_a_clean_source_passes_every_policy_in_silence(beir, capsys, policy):
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq7\td7\t1\nq8\td8\t1\n")
    data = training_data(recipe_for(beir, contamination=policy))
    assert numbers(data.pairs) == [7, 8]
    assert data.contamination[0].rows == []
    assert capsys.readouterr().err == ""


def test_nothing_left_is_an_error(beir):
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td3\t1\n")
    with pytest.raises(LBRError, match="every training row"):
        training_data(recipe_for(beir))


def test_all_queries_count_even_where_a_few_are_evaluated(beir, tmp_path):
    recipe = recipe_for(beir)
    whole = prepare(recipe, tmp_path / "data")
    recipe.evaluate = EvaluateConfig(num_queries=1, num_documents=1)
    part = prepare(recipe, tmp_path / "other")
    assert (len(whole.test.queries), len(part.test.queries)) == (2, 1)
    assert evaluation_set(recipe) == part.test
    assert numbers(part.pairs) == numbers(whole.pairs)
    assert part.contamination == whole.contamination


def test_extra_texts_and_separate_pairs_are_checked_each(beir, tmp_path):
    texts = [definition(number) for number in range(20, 40)]
    extra = write_lines(tmp_path / "extra.jsonl", [{"text": text} for text in [*texts, definition(0).upper()]])
    main = write_lines(tmp_path / "main.jsonl", [{"text": text} for text in [definition(1, "told"), *texts[:5]]])
    data = training_data(recipe_for(main, pairs=str(beir), texts=str(extra)))
    assert [(report.training, len(report.rows)) for report in data.contamination] == [
        ("pairs of beir", 4),
        ("texts of main.jsonl", 1),
        ("texts of extra.jsonl", 1),
    ]
    assert list(data.texts["text"]) == [*texts[:5], *texts]


def texts_only(path, texts):
    """Return a recipe that trains stage 1 alone, on texts without pairs."""
    recipe = recipe_for(write_lines(path, [{"text": text} for text in texts]))
    recipe.learn = LearnConfig(pairs=["reconstruct"], num_eval_pairs=3)
    recipe.represent = RepresentConfig(enabled=False)
    return recipe


def test_without_an_evaluation_nothing_is_checked(tmp_path):
    recipe = texts_only(tmp_path / "texts.jsonl", map(definition, range(5)))
    data = training_data(recipe)
    assert data.contamination == []
    assert (evaluation_set(recipe), data.pairs, len(data.texts)) == (None, None, 5)


def test_held_out_pairs_are_checked_for_near_duplicates(tmp_path):
    rows = [{"query": f"thing {i}", "document": definition(i)} for i in range(60)]
    rows += [{"query": f"other thing {i}", "document": definition(i, "told")} for i in range(60)]
    data = prepare(recipe_for(write_lines(tmp_path / "pairs.jsonl", rows)), tmp_path / "data")
    assert len(data.test.queries) == 12
    asked = {int(query.split()[-1]) for query in data.test.queries.values()}
    assert not asked & set(numbers(data.pairs))
    # Each held-out document has a twin, which is dropped unless it is held out, too.
    assert len(data.contamination[0].rows) == 2 * len(asked) - 12


@pytest.fixture
def toy_task(monkeypatch):
    corpus = {f"d{i}": definition(i) for i in range(8)}
    test, dev = (
        RetrievalSet(f"toy-{split}", corpus, {f"q{i}": f"thing {i}"}, {f"q{i}": {f"d{i}": 1}})
        for i, split in enumerate(("test", "dev"))
    )
    train = [definition(i) for i in range(2, 8)] + [definition(0, "told"), definition(1, "told")]
    pairs = Dataset.from_dict({"query": [f"name {i}" for i in range(8)], "document": train})
    task = DomainTask(test, dev, pairs, Dataset.from_dict({"text": train}), "toy: free")
    use_tasks(monkeypatch, toy=task)
    return task


def use_tasks(monkeypatch, **tasks):
    monkeypatch.setattr(module, "DOMAIN_TASKS", {name: lambda task=task: task for name, task in tasks.items()})
    monkeypatch.setattr(module, "domain_task", tasks.__getitem__)


def test_any_domain_task_is_a_source_and_is_checked_against_dev_too(toy_task):
    data = training_data(recipe_for("toy"))
    assert data.licences == ["toy: free"]
    assert evaluation_set(recipe_for("toy")) is toy_task.test
    assert [(report.training, report.rows) for report in data.contamination] == [
        ("pairs of toy", [6, 7]),
        ("texts of toy", [6, 7]),
    ]
    assert len(data.pairs) == len(data.texts) == 6
    assert len(toy_task.train_pairs) == 8


def test_records_name_what_is_asked_for_and_stay(toy_task, monkeypatch):
    rows = {"name": ["thing 0", "name 3", "tall"], "text": ["record 0", "record 1", "record 2"]}
    records = Dataset.from_dict({**rows, "side": ["query", "query", "document"]})
    use_tasks(monkeypatch, toy=replace(toy_task, records=records))
    recipe = recipe_for("toy")
    assert training_data(recipe).records is None
    recipe.learn.pairs = ["records"]
    data = training_data(recipe)
    assert len(data.records) == 3
    report = data.contamination[-1]
    assert (report.training, report.rows, report.dropped) == ("records of toy", [0], False)
    assert recipe_columns(recipe)["name"] == rows["name"]
    more = Dataset.from_dict({column: [*records[column]] * 4 for column in records.column_names})
    texts = more.remove_columns("text").add_column("text", [f"record {n}" for n in range(12)])
    pairs, held_out = pairs_to_learn(recipe, {**data.tables, "records": texts})
    made = [*pairs, *held_out]
    assert len(made) == 12
    assert {"context": "document: tall", "target": "record 2"} in made
    assert {"context": "query: thing 0", "target": "record 3"} in made


def test_other_domain_tasks_are_trained_on_too_and_tell_nothing_that_the_source_asks_for(toy_task, monkeypatch):
    rows = {"name": ["thing 0", "name 20", "fine"], "text": ["record", "record 20", definition(1, "told")]}
    other = replace(
        toy_task,
        test=RetrievalSet("other-test", {"e": definition(20)}, {"q": "name 20"}, {"q": {"e": 1}}),
        dev=RetrievalSet("other-dev", {"e": definition(21)}, {"q": "name 21"}, {"q": {"e": 1}}),
        train_pairs=Dataset.from_dict({"query": ["name 21", "name 30"], "document": ["a text", definition(30)]}),
        train_texts=Dataset.from_dict({"text": [definition(30), definition(0)]}),
        licence="other: free",
        records=Dataset.from_dict({**rows, "side": ["query"] * 3}),
    )
    use_tasks(monkeypatch, toy=toy_task, other=other)
    recipe = recipe_for("toy", also=["other"])
    data = training_data(recipe)
    assert data.licences == ["toy: free", "other: free"]
    assert [report.training for report in data.contamination] == ["pairs of toy", "texts of toy", "texts of other"]
    assert evaluation_set(recipe) is toy_task.test
    assert data.pairs["query"][-1:] == ["name 30"]  # dev of the other asks for name 21
    assert len(data.pairs) == 7
    assert data.texts["text"][-1:] == [definition(30)]  # the source asks for thing 0
    assert data.records is None
    recipe.learn.pairs = ["records"]
    # A record may name what its own task asks for, not what the source does.
    assert training_data(recipe).records["name"][:] == ["name 20"]
    assert recipe_columns(recipe)["name"][:] == rows["name"]


def test_synonyms_are_further_queries(toy_task, monkeypatch):
    synonyms = Dataset.from_dict({"query": ["thing 0", "alias"], "document": [definition(5), definition(5)]})
    use_tasks(monkeypatch, toy=replace(toy_task, synonym_pairs=synonyms))
    assert "alias" not in training_data(recipe_for("toy")).pairs["query"][:]
    assert training_data(recipe_for("toy", synonyms=True)).pairs["query"][-2:] == ["name 5", "alias"]


def test_settings_are_chosen_on_dev_where_there_is_one(toy_task, beir, tmp_path):
    recipe = recipe_for("toy")
    recipe.evaluate.split = "dev"
    assert evaluation_set(recipe) is toy_task.dev
    recipe.data.source = str(beir)
    assert list(prepare(recipe, tmp_path / "data").test.queries) == ["q2"]
    (beir / "qrels" / "dev.tsv").unlink()
    with pytest.raises(LBRError, match="no dev queries"):
        evaluation_set(recipe)


def test_recipe_columns_are_what_the_sources_hold(toy_task, tmp_path):
    extra = write_lines(tmp_path / "extra.jsonl", [{"text": "more"}])
    columns = recipe_columns(recipe_for("toy", texts=str(extra)))
    assert list(columns) == ["query", "document", "text"]
    assert columns["text"] == [*toy_task.train_texts["text"], "more"]


def test_a_check_in_several_processes_finds_the_same(beir, tmp_path, monkeypatch):
    texts = [definition(n, "told" if n % 5 else "said") if n % 7 else f"before: {definition(n)}" for n in range(900)]
    texts += ["QUESTION about 1", "question about 1"]
    extra = write_lines(tmp_path / "extra.jsonl", [{"text": text} for text in texts])
    recipe = recipe_for(beir, texts=str(extra))
    alone = training_data(recipe)
    monkeypatch.setattr(lines, "LARGE", 1)
    together = training_data(recipe)
    assert together.contamination == alone.contamination
    assert together.contamination[1].rows == [0, 1, 2, 900, 901]
    assert (together.pairs[:], together.texts[:]) == (alone.pairs[:], alone.texts[:])


def test_the_hidden_texts_are_the_first_in_the_stable_order(tmp_path):
    texts = [f"Text  number {n % 30}." if n % 2 else f"text NUMBER {n % 30}" for n in range(60)]
    recipe = texts_only(tmp_path / "texts.jsonl", texts)
    train, held = pairs_to_learn(recipe, training_data(recipe).tables)
    hidden = stable_order({normalise(text) for text in texts}, 0)[:3]
    assert {normalise(text) for text in held["target"]} <= set(hidden)
    assert sorted(train["target"]) == sorted(text for text in texts if normalise(text) not in hidden)


def test_a_domain_task_takes_no_other_pairs():
    with pytest.raises(LBRError, match=r"data\.pairs: chebi brings its own pairs"):
        training_data(recipe_for("chebi", pairs="mine.jsonl"))


@pytest.mark.parametrize(("kind", "needs"), [("natural", "pairs"), ("records", "records")])
def test_a_kind_of_pair_that_the_data_cannot_give_is_refused(tmp_path, kind, needs):
    recipe = texts_only(tmp_path / "texts.jsonl", map(definition, range(9)))
    data = training_data(recipe)
    recipe.learn.pairs = [kind]
    with pytest.raises(LBRError, match=rf"learn\.pairs: '{kind}' pairs need {needs}, and the data has none"):
        pairs_to_learn(recipe, data.tables)


# --- kept on disk -----------------------------------------------------------------------------------------------------


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
    return [path.name for path in folder.iterdir() if path.name != ".prepared.lock"]


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
