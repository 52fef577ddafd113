"""Sources that a run trains on, small enough to check by eye: files, BEIR folders and domain tasks."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from lbr_st.data.beir import RetrievalSet
from lbr_st.domains.definitions import DomainTask
from lbr_st.recipe import DataConfig, Recipe
from lbr_st.training import data, sources
from lbr_st.training.data import without_evaluation
from lbr_st.training.sources import read_sources

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


def recipe_for(source, **options):
    return Recipe(data=DataConfig(source=str(source), **options))


def training_data(recipe):
    read = read_sources(recipe)
    tables, reports = without_evaluation(recipe, read)
    found = {"pairs": None, "texts": None, "records": None, **tables}
    return SimpleNamespace(tables=tables, contamination=reports, licences=read.licences, **found)


def numbers(pairs):
    return [int(query.split()[-1].strip("!")) for query in pairs["query"]]


# --- kept apart from the evaluation -----------------------------------------------------------------------------------


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
    for module in (data, sources):
        monkeypatch.setattr(module, "DOMAIN_TASKS", {name: lambda task=task: task for name, task in tasks.items()})
    monkeypatch.setattr(sources, "domain_task", tasks.__getitem__)
