import csv
import json

import pytest
from beir_folder import write_beir
from datasets import Dataset

from lbr_st.data.beir import RetrievalSet
from lbr_st.data.sources import read_pairs, read_texts
from lbr_st.errors import LBRError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def jsonl(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def fails(read, *parts, **options):
    with pytest.raises(LBRError) as caught:
        read(**options)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.fix


def test_jsonl_keeps_only_the_text(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"id": 1, "text": "α–β"}, {"id": "x", "text": "2020-01-01", "more": [1]})
    dataset = read_texts(path)
    assert dataset[:] == {"text": ["α–β", "2020-01-01"]}  # no date
    assert read_texts(str(jsonl(path, {"body": "x"})), column="body")[:] == {"text": ["x"]}


def test_json_array_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=1), encoding="utf-8")
    assert read_texts(path)["text"][:] == ["one", "two"]
    path.write_text('[{"text": "one"}, {"txt": "two"}]', encoding="utf-8")
    fails(lambda: read_texts(path), str(path), "item 2", "'text'", "txt")
    marked = tmp_path / "b.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + b'{"text": "x"}\r\n{"text": "y"}\r\n')
    assert read_texts(marked)["text"][:] == ["x", "y"]


def bad_line(line, *parts):
    return "bad.jsonl", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n', ["line 3", *parts]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("bad.json", b"[]", ["no text"]),
        ("bad.json", b'[{"text": "one"}', ["Expecting ',' delimiter", "line 1"]),
        ("bad.json", b'[{"text": "one"}, 12]', ["item 2", "int", "object"]),
        ("bad.json", b'[{"text": "one"}] more', ["Extra data"]),
        ("bad.json", b'[{"text": "one"},\n{"text": "\xff"}]', ["line 2", "UTF-8"]),
        ("bad.json", b"[" * 100_000, ["not JSON"]),
        bad_line(b'{"text": "\xff"}', "UTF-8"),
        bad_line(b'{"text": "x"', "not JSON"),
        bad_line(b'["x"]', "list", "object"),
        bad_line(b'{"txt": "x"}', "'text'", "txt"),
        bad_line(b'{"text": 3}', "'text'", "int"),
        bad_line(b'{"text": ""}', "'text'", "empty"),
        bad_line(b'{"text": "\\ud83d"}', "'text'", "half a character"),
        ("bad.csv", b"id,text\n", ["no text"]),
        ("bad.csv", b'id,text\n1,"two\nlines"\n2, \n', ["line 4", "'text'", "empty"]),
        ("bad.csv", b"id,text\n1,x\n2,\xff\n", ["line 3", "UTF-8"]),
        ("bad.csv", b"id,text\n1,one, two\n", ["line 2", "more fields than the header"]),
        ("bad.csv", b"id,text\n1\n", ["line 2", "fewer fields than the header"]),
        ("bad.csv", b'id,text\n1,"never closed\n2,x\n', ["not CSV", "line 2"]),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content)
    fails(lambda: read_texts(path), str(path), *parts)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_empty_and_missing_files(tmp_path, name):
    path = tmp_path / name
    fails(lambda: read_texts(str(path)), str(path), "no such file")
    path.write_text("\n" if name != "a.csv" else "")
    fails(lambda: read_texts(path), str(path), "no text")


def test_csv_takes_words_as_they_are(tmp_path):
    path, long = tmp_path / "a.csv", "x" * 200_000
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["id", "text"], [1, "NA"], [2, 'two\nlines, "quoted"'], [3, "007"], [4, long]])
    assert read_texts(path)["text"][:] == ["NA", 'two\nlines, "quoted"', "007", long]
    assert read_texts(path, column="id")["text"][:] == ["1", "2", "3", "4"]
    fails(lambda: read_texts(path, column="body"), str(path), "'body'", "id, text")


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_dict({"n": [1, 2], "q": ["x", "y"], "d": ["u", "v"]}).to_parquet(path)
    assert read_texts(path, column="d")[:] == {"text": ["u", "v"]}
    fails(lambda: read_texts(path), str(path), "'text'", "n, q, d")
    fails(lambda: read_texts(path, column="n"), str(path), "row 1", "'n'", "int")
    Dataset.from_dict({"text": ["x", None]}).to_parquet(path)
    fails(lambda: read_texts(path), str(path), "row 2", "'text'", "NoneType")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    fails(lambda: read_texts(tmp_path / "broken.parquet"), "broken.parquet")


def test_pairs_are_renamed(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"document": "q1", "query": "d1", "more": "n1"})
    swapped = read_pairs(path, query_column="document", document_column="query")
    assert swapped.to_list() == [{"query": "q1", "document": "d1"}]
    fails(lambda: read_pairs(path, document_column="no"), "line 1", "'no'")
    fails(lambda: read_pairs(path, query_column="document"), "twice")


def test_beir_folder(tmp_path):
    corpus = {"a": "alpha", "b": "beta", "c": ""}
    task = RetrievalSet("t", corpus, {"1": "first?", "2": "second?"}, {"1": {"a": 1, "b": 0}, "2": {"b": 2}})
    write_beir({"train": task}, tmp_path / "beir")
    assert read_texts(tmp_path / "beir")[:] == {"text": ["alpha", "beta"]}
    pairs = read_pairs(tmp_path / "beir")
    assert pairs[:] == {"query": ["first?", "second?"], "document": ["alpha", "beta"]}
    fails(lambda: read_pairs(tmp_path / "beir", split="test"), "'test'", "train")
    write_beir({"none": RetrievalSet("t", corpus, {"1": "first?"}, {"1": {"a": 0, "c": 1}})}, tmp_path / "beir")
    fails(lambda: read_pairs(tmp_path / "beir", split="none"), "beir: there is no text in it")
    fails(lambda: read_texts(tmp_path), str(tmp_path), "corpus.jsonl")


def test_beir_folder_is_read_from_disk_and_its_errors_are_kept(tmp_path):
    corpus = {f"d{n}": f"text {n}" * (n > 0) for n in range(1200)}
    queries = {f"q{n}": f"asked {n}" for n in range(600)}
    task = RetrievalSet("t", corpus, queries, {q: {f"d{n}": n % 3, f"d{n + 600}": 1} for n, q in enumerate(queries)})
    folder = tmp_path / "beir"
    write_beir({"train": task}, folder)
    texts, pairs = read_texts(folder), read_pairs(folder)
    assert texts["text"][:] == [text for text in corpus.values() if text]
    wanted = [(queries[q], corpus[d]) for q, of in task.qrels.items() for d, grade in of.items() if grade and corpus[d]]
    assert list(zip(pairs["query"], pairs["document"], strict=True)) == wanted
    assert texts.cache_files
    assert pairs.cache_files

    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d7", "text": "again"}\n')
    for read in (read_texts, read_pairs):
        fails(lambda read=read: read(folder), "corpus.jsonl, line 1201", "'d7' comes twice")
    write_beir({"train": task}, folder)
    for line, what in {
        "q9\td9999\t1": "no text in it",
        "x\td9\t1": "no judgements of",
        "q9\td9\t1.5": "line 2: not a",
    }.items():
        (folder / "qrels" / "bad.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
        fails(lambda: read_pairs(folder, split="bad"), what)
    (folder / "queries.jsonl").write_text("")
    fails(lambda: read_pairs(folder), "no judgements of queries in queries.jsonl")


def test_judgements_of_what_a_beir_folder_lacks_are_left_out_with_one_note(tmp_path, capsys):
    qrels = {"1": {"a": 1, "gone": 1, "lost": 1}, "2": {"gone": 1}}
    task = RetrievalSet("t", {"a": "alpha"}, {"1": "first?", "2": "second?"}, qrels)
    write_beir({"train": task}, tmp_path / "beir")
    with (tmp_path / "beir" / "qrels" / "train.tsv").open("a") as file:
        file.write("3\ta\t1\n")
    assert read_pairs(tmp_path / "beir").to_list() == [{"query": "first?", "document": "alpha"}]
    said = "beir, train: left out 1 judgements of unknown queries, 3 judgements of missing documents.\n"
    assert capsys.readouterr().err == said
    assert read_texts(tmp_path / "beir").to_list() == [{"text": "alpha"}]
    assert not capsys.readouterr().err


def test_least_score_of_a_beir_folders_pairs(tmp_path):
    qrels = {"1": {"a": 2, "b": 1, "c": 0, "d": -1}}
    task = RetrievalSet("t", {key: f"text {key}" for key in "abcd"}, {"1": "which?"}, qrels)
    write_beir({"train": task}, tmp_path / "beir")
    for least, documents in ((None, ["text a", "text b"]), (-1, ["text a", "text b"]), (1.5, ["text a"])):
        assert read_pairs(tmp_path / "beir", min_score=least)["document"][:] == documents


def test_unknown_suffix_and_paths_are_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    (tmp_path / "a.docx").write_text("x")
    fails(lambda: read_texts(tmp_path / "a.docx"), ".docx", ".jsonl")
    fails(lambda: read_texts("./nothing/here"), "no such file")


def test_hub_dataset(monkeypatch):
    def load(name, split):
        if split == "none":
            raise ConnectionError("Couldn't reach it on the Hub")
        return Dataset.from_dict({"abstract": [f"of {name}", f"of {split}"], "n": [1, 2]})

    monkeypatch.setattr("datasets.load_dataset", load)
    assert read_texts("some/set", column="abstract", split="dev")[:] == {"text": ["of some/set", "of dev"]}
    fails(lambda: read_texts("some/set"), "some/set", "'text'", "abstract")
    fails(lambda: read_texts("some/set", split="none"), "some/set", "Couldn't reach it", "network")
