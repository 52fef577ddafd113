"""Token datasets: the ids that the model itself makes, kept on disk, found again by what they were made of."""

import shutil

import pytest
import torch
from datasets import Dataset
from tiny_models import run_stage

from lbr_st.data.texts import digest
from lbr_st.model.build import build_model
from lbr_st.recipe import LearnConfig
from lbr_st.training import tokens
from lbr_st.training.tokens import Column, TokenCollator, reachable, tokenized

TEXTS = ["an acid", "", "  spaces  ", "β-D-Galp-(1→4) 😀", "the base of a salt " * 15, "<|lbr_0|>", "a\nb\0c"]
COLUMNS = {"query": Column("query: "), "document": Column("document: ", max_length=9)}


@pytest.fixture
def model(tiny_base):
    return build_model(tiny_base("llama"), num_bottleneck_tokens=2, max_seq_length=24, device="cpu")


@pytest.fixture
def pairs():
    return Dataset.from_dict({"document": TEXTS[::-1], "other": TEXTS, "query": TEXTS})


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The rows of each batch that is tokenised."""
    calls: list[int] = []
    real = tokens._tokenize
    monkeypatch.setattr(tokens, "_tokenize", lambda rows, **how: calls.append(len(rows["query"])) or real(rows, **how))
    return calls


def test_ids_are_those_of_the_model(model, pairs):
    made = tokenized(pairs, model.tokenizer, {"query": Column("query: "), "document": Column()})
    assert made.column_names == ["query", "query_digest", "document", "document_digest", "num_tokens"]
    batch = TokenCollator(model.preprocess, pad_token_id=model.tokenizer.pad_token_id)(list(made))
    for name, prompt in (("query", "query: "), ("document", None)):
        wanted = model.preprocess(list(pairs[name]), prompt=prompt)
        assert torch.equal(batch[f"{name}_input_ids"], wanted["input_ids"])
        assert torch.equal(batch[f"{name}_attention_mask"], wanted["attention_mask"])
    assert len(batch) == 4
    assert made["num_tokens"][:] == [len(row["query"]) + len(row["document"]) for row in made]
    assert made["query_digest"][:] == [digest(text) for text in TEXTS]
    assert set(made["query_digest"][:]) == set(made["document_digest"][:])  # whatever the prompt


def test_a_column_may_be_shorter_than_the_model_allows(model, pairs):
    made = tokenized(pairs, model.tokenizer, COLUMNS)
    assert max(map(len, made["document"])) == 9
    assert max(map(len, made["query"])) == 24
    closing = model.tokenizer("")["input_ids"][-2:]
    assert all(ids[-2:] == closing for ids in made["document"])


def test_made_once_and_read_back_also_from_a_folder_that_was_moved(model, pairs, tmp_path, calls):
    here, there = tmp_path / "here", tmp_path / "there"
    first = tokenized(pairs, model.tokenizer, COLUMNS, cache_dir=here).to_dict()
    shutil.move(here, there)
    model.encode(["a text that leaves padding and truncation behind"], batch_size=1)
    # Other objects of the same content, as on another machine.
    same = Dataset.from_dict(pairs.to_dict())
    again = tokenized(same, model.tokenizer, COLUMNS, cache_dir=there)
    assert calls == [len(TEXTS)]
    assert again.to_dict() == first == tokenized(pairs, model.tokenizer, COLUMNS).to_dict()
    assert all(str(there) in file["filename"] for file in again.cache_files)  # memory-mapped, not read


@pytest.mark.parametrize("change", ["text", "order", "prompt", "length", "tokenizer"])
def test_anything_else_is_made_again(model, pairs, tmp_path, calls, change):
    tokenized(pairs, model.tokenizer, COLUMNS, cache_dir=tmp_path)
    columns = dict(COLUMNS)
    if change == "text":
        pairs = Dataset.from_dict({"query": [*TEXTS[:-1], "changed"], "document": TEXTS[::-1]})
    elif change == "order":
        pairs = pairs.select(range(len(pairs))[::-1])
    elif change == "prompt":
        columns["query"] = Column("Query: ")
    elif change == "length":
        model.max_seq_length = 20
    else:
        model.tokenizer.add_tokens(["acid"])
    tokenized(pairs, model.tokenizer, columns, cache_dir=tmp_path)
    assert calls == [len(TEXTS)] * 2


def test_broken_files_are_made_again(model, pairs, tmp_path):
    first = tokenized(pairs, model.tokenizer, COLUMNS, cache_dir=tmp_path).to_dict()
    [file] = tmp_path.glob("tokens-*/*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    assert tokenized(pairs, model.tokenizer, COLUMNS, cache_dir=tmp_path).to_dict() == first


def test_several_processes_make_the_same(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "processes", lambda dataset: 2)
    many = Dataset.from_dict({name: list(pairs[name]) * 5 for name in COLUMNS})
    made = tokenized(many, model.tokenizer, COLUMNS, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("tokens-*/*.arrow"))) == 2
    assert made.to_dict() == tokenized(many, model.tokenizer, COLUMNS).to_dict()


def test_negatives_that_rows_do_not_have_are_left_out_of_their_batch(model):
    rows = Dataset.from_dict({"query": ["", "acid", "a base"], "negative_1": ["", "", "salt"]})
    made = list(tokenized(rows, model.tokenizer, {"query": Column("query: "), "negative_1": Column("document: ")}))
    collate = TokenCollator(model.preprocess, pad_token_id=model.tokenizer.pad_token_id)
    assert list(collate(made[:2])) == ["query_input_ids", "query_attention_mask"]
    assert len(collate(made[2:])) == 4


def test_a_short_run_takes_rows_for_its_steps_alone(monkeypatch):
    monkeypatch.setattr(tokens.torch.cuda, "device_count", lambda: 0)
    rows, config = Dataset.from_dict({"text": [str(number) for number in range(100)]}), LearnConfig(max_steps=3)
    config.batch_size = 4
    taken = reachable(rows, config, 0)["text"][:]
    assert len(set(taken)) == 2 * 3 * 4
    assert reachable(rows, config, 0)["text"][:] == taken != reachable(rows, config, 1)["text"][:]
    assert len(reachable(rows, config, 0, {"gradient_accumulation_steps": 2, "max_steps": 5})) == 2 * 5 * 4 * 2
    for other in ({"max_steps": 50}, {"max_steps": -1}, {"per_device_train_batch_size": 64}):
        assert reachable(rows, config, 0, other) is rows


@pytest.mark.parametrize(
    ("stage", "options", "count"),
    [("learn", {}, 8), ("represent", {}, 8), ("represent", {"similar_group_size": 2}, 10)],
)
def test_a_stage_tokenises_no_more(tiny_base, tmp_path, monkeypatch, stage, options, count):
    seen, real = [], tokens._tokenize
    monkeypatch.setattr(
        tokens, "_tokenize", lambda rows, **how: seen.append(len(rows[next(iter(rows))])) or real(rows, **how)
    )
    monkeypatch.setattr(tokens.torch.cuda, "device_count", lambda: 0)
    run_stage(stage, build_model(tiny_base("llama"), max_seq_length=24, lora_rank=2), tmp_path, max_steps=2, **options)
    assert seen == [count]
