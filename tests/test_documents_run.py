"""A run from documents alone: passages, made pairs, both stages, the verdict, and steps that follow the folder."""

import json
import re
import shlex
from dataclasses import replace

import pytest
from embedders import embedder

import lbr_st
from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.errors import LBRError
from lbr_st.evaluation.look import search
from lbr_st.files import BESIDE
from lbr_st.model.build import build_model
from lbr_st.recipe import DataConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig, load_recipe, with_steps
from lbr_st.training.data import prepare
from lbr_st.training.init import init
from lbr_st.training.sources import read_sources

KINDS = ("acid", "base", "salt", "ester", "enzyme", "protein")


@pytest.fixture
def folder(tmp_path):
    """Twelve files of six sections each, every section about something of its own."""
    place = tmp_path / "documents"
    place.mkdir()
    for number in range(12):
        sections = [
            f"# The {kind} of plant {number}{kind[0]}\n\nThe {kind} of plant {number}{kind[0]} is a salt of number"
            f" {number * 7}. It grows in river {number}{kind[:2]} near hill {number}. A worker of mill {number}{kind} "
            f"keeps it dry and stores it in barrel {number}{kind[-2:]} for a year.\n"
            for kind in KINDS
        ]
        (place / f"plant{number}.md").write_text("\n".join(sections), encoding="utf-8")
    return place


def recipe_for(base, source, **changes):
    values = {
        "name": "lbr-toy",
        "precision": "float32",
        "model": ModelConfig(base=base, max_seq_length=160, lora_rank=4, lora_alpha=8),
        "data": DataConfig(source=str(source)),
        "learn": LearnConfig(batch_size=8, warmup_steps=1, eval_steps=50, num_eval_pairs=4),
        "represent": RepresentConfig(batch_size=16, warmup_steps=1),
    }
    return Recipe(**{**values, **changes})


@pytest.mark.parametrize(("form", "prompt"), [("ours", "document: "), ("qwen3-embedding", "")])
def test_passages_fit_into_an_embedder_with_its_own_prompt(tiny_base, folder, tmp_path, form, prompt):
    base = embedder(form, tiny_base, tmp_path / "base")
    recipe = recipe_for(base, folder)
    texts = _passages(recipe)
    tokenizer = build_model(base, num_bottleneck_tokens=4, device="cpu").tokenizer
    sizes = [len(tokenizer(prompt + text)["input_ids"]) for text in texts]
    assert max(sizes) <= 160
    recipe.model.document_prompt = "that is at hand: " * 8
    assert len(_passages(recipe)) > len(texts)


def test_before_a_run_it_is_said_what_it_will_cost(tiny_base, folder, tmp_path):
    recipe = recipe_for(tiny_base("llama"), "", max_hours=1e-9)
    said = init(recipe, str(folder), tmp_path / "made" / "recipe.yaml")
    assert re.search(r"^learn: 4 steps of 8 of \d+ pairs, ", said, re.M)  # one more than are timed
    assert re.search(r"^represent: 4 steps of 16 of \d+ pairs, ", said, re.M)
    assert re.search(r"^scoring: \d+ queries in 72 documents$", said, re.M)
    assert re.search(r"^About \d+ minutes .*: reading .*, learn .*, represent .*, scoring ", said, re.M)
    assert load_recipe(tmp_path / "made" / "recipe.yaml") == recipe_for(recipe.model.base, folder, max_hours=1e-9)
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["recipe.yaml"]


def _passages(recipe):
    return {kind: rows for kind, _, rows in read_sources(recipe).parts}["texts"]["text"]


def test_a_folder_of_documents_is_enough(tiny_base, folder, tmp_path, capsys, monkeypatch):
    recipe = recipe_for(tiny_base("llama"), folder)
    rows = pipeline.run(recipe, tmp_path / "out")
    out, said = capsys.readouterr()
    assert rows[0][0] == "BM25"
    assert out.strip().splitlines()[-1].startswith("VERDICT")
    assert "made from the text" in out.strip().splitlines()[-1]
    chosen = json.loads((tmp_path / "out" / "search.json").read_text())
    assert chosen["order"] in ("model", "bm25", "both")
    assert f": {chosen['ndcg_at_10'][chosen['order']]:.3f}. " in out.partition(" Searching by ")[2]
    for part in ("{", "\r", "Batches", "it/s"):  # raw logs and other libraries' bars
        assert part not in said
    held_out = f"- held out: {rows[0][1].num_queries} queries over 72 documents\n"
    plan, after = said.partition(held_out)[::2]
    assert "Plan for" in plan
    assert "- Stage 1, learn: " in after
    first, second = after.index(f"Scored BM25: nDCG@10 {rows[0][1].ndcg_at_10:.3f}."), after.index("steps of about")
    assert first < second < after.index(f"Scored after stage 1, learn: nDCG@10 {rows[1][1].ndcg_at_10:.3f}.")
    search_again, in_python, evaluate = said.strip().splitlines()[-3:]
    assert shlex.split(search_again) == ["lbr-st", "search", str(tmp_path / "out"), str(folder), "your question"]
    assert in_python.strip().startswith(f'SentenceTransformer("{tmp_path / "out"}").encode_query(')
    monkeypatch.chdir(tmp_path)
    queries = {"query": "where does it grow", "quote": "grows in river 3ac near hill 3"}
    (tmp_path / "my_queries.jsonl").write_text(json.dumps(queries), encoding="utf-8")
    assert main(shlex.split(evaluate, comments=True)[1:]) == 0
    assert "| out " in capsys.readouterr().out
    search(str(tmp_path / "out"), str(folder), ["who keeps it"])
    assert len([*(folder / BESIDE).iterdir()]) == 1  # the run kept embeddings where the search looks for them
    data = prepare(recipe, tmp_path / "out-work" / "data")
    log = json.loads((tmp_path / "out-work" / "represent" / "training_log.json").read_text())
    assert max(entry["step"] for entry in log) == -(-len(data.pairs) // 16)  # one pass over the pairs
    assert data.made == "queries"
    assert len(set(data.pairs["passage"])) < len(data.pairs)  # of one passage several


def test_a_teacher_teaches_from_documents_alone(bert, tiny_base, folder, tmp_path):
    bert().save(str(tmp_path / "general"))
    represent = RepresentConfig(max_steps=2, batch_size=16, warmup_steps=1, teacher=str(tmp_path / "general"))
    recipe = recipe_for(tiny_base("llama"), folder, represent=represent)
    recipe.learn.enabled = recipe.evaluate.enabled = False
    pipeline.run(recipe, tmp_path / "out")
    assert "- Teacher general: licence" in (tmp_path / "out" / "README.md").read_text()
    assert len([*(tmp_path / "out-work" / "data").glob("teacher-*")]) == 1


def test_stage_1_reads_every_passage_and_no_pair_has_one_of_a_held_out_file(tiny_base, folder):
    sources = read_sources(recipe_for(tiny_base("llama"), folder, represent=RepresentConfig(stop=1)))
    tables = {kind: rows for kind, _, rows in sources.parts}
    passages = set(tables["texts"]["text"])
    assert set(sources.test.corpus.values()) <= passages
    judged = {sources.test.corpus[key] for one in sources.test.qrels.values() for key in one}
    chosen = {sources.dev.corpus[key] for one in sources.dev.qrels.values() for key in one}
    assert judged
    assert judged.isdisjoint(chosen)
    assert (judged | chosen).isdisjoint(tables["pairs"]["document"])


def test_ones_own_queries_judge_and_made_pairs_leave_their_answers_out(tiny_base, folder, tmp_path):
    queries = tmp_path / "queries.jsonl"
    quote = "grows in river 3ac near hill 3"
    queries.write_text(json.dumps({"query": "where does it grow", "quote": quote}), encoding="utf-8")
    sources = read_sources(recipe_for(tiny_base("llama"), folder, data=DataConfig(str(folder), queries=str(queries))))
    tables = {kind: rows for kind, _, rows in sources.parts}
    assert [*sources.test.queries.values()] == ["where does it grow"]
    [judged] = [sources.test.corpus[key] for one in sources.test.qrels.values() for key in one]
    assert quote in judged
    assert judged in tables["texts"]["text"]
    assert judged not in tables["pairs"]["document"]
    assert sources.made == "pairs"


def test_tables_of_pairs_in_the_folder_add_theirs(tiny_base, folder):
    (folder / "known.csv").write_text("query,document\nwho keeps it,The keeper of the mill\n", encoding="utf-8")
    sources = read_sources(recipe_for(tiny_base("llama"), folder))
    [pairs] = [rows for kind, _, rows in sources.parts if kind == "pairs"]
    assert ("who keeps it", "The keeper of the mill") in zip(pairs["query"], pairs["document"], strict=True)


def test_changed_documents_or_another_length_are_read_again_and_equal_ones_are_not(tiny_base, folder, tmp_path, capsys):
    recipe = recipe_for(tiny_base("llama"), folder)
    prepare(recipe, tmp_path / "data")
    assert "Reading" in capsys.readouterr().err
    prepare(recipe, tmp_path / "data")
    assert "prepared before" in capsys.readouterr().err
    prepare(replace(recipe, model=replace(recipe.model, max_seq_length=150)), tmp_path / "data")
    assert "prepared before" not in capsys.readouterr().err
    (folder / "plant1.md").write_text("# Another\n\nSomething else stands here now, in two words or more.\n")
    prepare(replace(recipe, model=replace(recipe.model, max_seq_length=150)), tmp_path / "data")
    assert "prepared before" not in capsys.readouterr().err


def test_few_passages_train_unjudged_with_a_warning_and_fewer_are_refused(tiny_base, folder):
    for file in sorted(folder.glob("*.md"))[3:]:
        file.unlink()
    sources = read_sources(recipe_for(tiny_base("llama"), folder))
    assert sources.test is None
    assert "trained unjudged" in sources.notes[-1]
    for file in sorted(folder.glob("*.md"))[1:]:
        file.unlink()
    with pytest.raises(LBRError, match="passages are too few"):
        read_sources(recipe_for(tiny_base("llama"), folder))


def test_steps_are_200_for_pairs_and_one_pass_over_those_made_of_documents():
    assert with_steps(LearnConfig()).max_steps == 200
    assert with_steps(RepresentConfig(batch_size=64), 130).max_steps == 3
    assert with_steps(RepresentConfig(max_steps=7), 130).max_steps == 7


def test_passages_and_pairs_are_plain_datasets(folder):
    passages = lbr_st.read_documents(folder)
    assert {"text", "heading", "file", "place"} <= set(passages.column_names)
    pairs = lbr_st.make_pairs(passages)
    assert {"query", "document", "kind"} <= set(pairs.column_names)
    assert len(pairs) > len(passages)
