"""What a recipe trains on: rows that repeat the evaluation are dropped, refused or reported, from every source."""

from dataclasses import replace

import pytest
from datasets import Dataset
from run_sources import definition, numbers, recipe_for, training_data, use_tasks, write_lines

from lbr_st.data import lines
from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.data.texts import normalise
from lbr_st.errors import LBRError
from lbr_st.recipe import EvaluateConfig, LearnConfig, RepresentConfig
from lbr_st.training.data import (
    evaluation_set,
    pairs_to_learn,
    prepare,
    recipe_columns,
)


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


def faq(path, *, questions, answers):
    """Return a recipe for questions that share answers."""
    rows = [{"query": f"question {n}", "document": definition(n % answers)} for n in range(questions)]
    return recipe_for(write_lines(path, rows))


def test_nothing_is_held_out_where_nothing_is_evaluated(tmp_path):
    recipe = faq(tmp_path / "pairs.jsonl", questions=60, answers=60)
    assert len(prepare(recipe, tmp_path / "held").pairs) == 54
    recipe.evaluate.enabled = False
    data = prepare(recipe, tmp_path / "all")
    assert (data.test, len(data.pairs), data.notes) == (None, 60, [])


def test_questions_that_share_answers_are_held_out_together(tmp_path):
    data = prepare(faq(tmp_path / "pairs.jsonl", questions=60, answers=5), tmp_path / "data")
    assert (len(data.test.queries), len(data.test.corpus), len(data.pairs)) == (12, 5, 48)
    assert not set(data.test.queries.values()) & set(data.pairs["query"])
    assert data.learn_pairs is not None


@pytest.mark.parametrize("shared", ["query", "document"])
def test_what_cannot_be_held_out_is_trained_on_with_one_warning(tmp_path, capsys, shared):
    rows = [{"query": f"question {n}", "document": definition(n)} | {shared: definition(99)} for n in range(60)]
    recipe = recipe_for(write_lines(tmp_path / "pairs.jsonl", rows))
    data = prepare(recipe, tmp_path / "data")
    assert (data.test, len(data.pairs), len(data.notes)) == (None, 60, 1)
    assert capsys.readouterr().err.count("pairs.jsonl: no pairs can be held out, so nothing is evaluated") == 1
    assert prepare(recipe, tmp_path / "data").notes == data.notes
    assert data.notes[0] in capsys.readouterr().err


def test_labels_and_negatives_come_as_far_as_training(tmp_path, capsys):
    rows = [{"query": f"question {n}", "document": definition(n), "label": 1} for n in range(60)]
    rows += [{"query": f"question {n}", "document": definition((n + 7) % 60), "label": 0} for n in range(60)]
    recipe = recipe_for(write_lines(tmp_path / "pairs.jsonl", rows))
    data = prepare(recipe, tmp_path / "data")
    assert data.pairs.column_names == ["query", "document", "negative_1"]
    assert "pairs.jsonl: right pairs: 60 of 120; hard negatives of their query: 60; left out: 0." in data.notes[1]
    # Documents of held-out queries stay out of training as negatives, too; nothing else is lost.
    held = {data.test.corpus[key] for of in data.test.qrels.values() for key in of}
    assert not held & set(data.pairs["negative_1"])
    repeats = sum(definition((int(query.split()[-1]) + 7) % 60) in held for query in data.pairs["query"])
    assert (len(data.pairs), list(data.pairs["negative_1"]).count("")) == (54, repeats)
    assert f"Left out {repeats} hard negatives that repeat evaluation texts." in capsys.readouterr().err
    recipe.data.contamination = "report"
    assert "" not in prepare(recipe, tmp_path / "all").pairs["negative_1"]


def test_pairs_with_negatives_are_joined_with_a_tasks_pairs(tmp_path, toy_task):
    rows = [{"query": f"question {n}", "document": definition(n + 50), "negative": definition(n)} for n in range(9)]
    data = training_data(recipe_for(write_lines(tmp_path / "pairs.jsonl", rows), also=["toy"]))
    assert list(data.pairs["negative_1"]).count("") >= 6
    assert None not in data.pairs["negative_1"]
