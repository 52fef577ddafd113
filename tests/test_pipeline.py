"""A whole run on a toy domain: data, both stages, release, table, recipe, and what bad input gets."""

import contextlib
import io
import json
import shlex
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from beir_folder import write_beir
from embedders import INSTRUCT, embedder
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.data.beir import RetrievalSet
from lbr_st.data.texts import normalise
from lbr_st.errors import LBRError
from lbr_st.model.load import load_by_name
from lbr_st.publish.bundle import bundle
from lbr_st.publish.stock import build_released
from lbr_st.recipe import (
    DataConfig,
    EvaluateConfig,
    LearnConfig,
    ModelConfig,
    Recipe,
    ReleaseConfig,
    RepresentConfig,
    baseline,
    load_recipe,
    recipe_without_places,
)
from lbr_st.training import teacher
from lbr_st.training.data import FOLDER, evaluation_set, without_evaluation
from lbr_st.training.data import pairs_to_learn as learn_pairs
from lbr_st.training.sources import read_sources


@pytest.fixture
def pairs_file(tmp_path):
    about = "the {0} of the class {1} that is a salt of an acid and a base. It is {2} of {1}."
    rows = [
        {"query": f"{kind} number {i}", "document": about.format(kind, i, i * 7)}
        for i in range(14)
        for kind in ("acid", "base", "salt", "ester", "enzyme", "protein")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def recipe_for(base, source, **changes):
    prompts = {"query_prompt": "query: ", "document_prompt": "document: "}
    values = {
        "name": "lbr-toy",
        "precision": "float32",
        "model": ModelConfig(base=base, max_seq_length=48, lora_rank=4, lora_alpha=8, **prompts),
        "data": DataConfig(source=str(source)),
        "learn": LearnConfig(max_steps=3, batch_size=4, warmup_steps=1, eval_steps=3, num_eval_pairs=4),
        "represent": RepresentConfig(max_steps=3, batch_size=4, warmup_steps=1),
    }
    return Recipe(**{**values, **changes})


def test_run_trains_releases_evaluates_and_keeps_its_recipe(tiny_base, pairs_file, tmp_path, capsys):
    base = tiny_base("llama")
    recipe = recipe_for(base, pairs_file, evaluate=EvaluateConfig(beside=f"untrained:{base}"))
    rows = pipeline.run(recipe, tmp_path / "out")
    assert [label for label, _ in rows][:3] == ["BM25", "untrained base, mean pooling", "after stage 1, learn"]
    assert len(rows) == 4
    table = capsys.readouterr().out
    for _, result in rows:
        assert f"{result.ndcg_at_10:.4f}" in table

    stock = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert np.isfinite(stock.encode_query(["acid number 3"])).all()
    # The released model is the one after stage 2, which is neither stage 1's nor the base.
    learned = pipeline.load_model(tmp_path / "out-work" / "learn", device="cpu")
    assert not np.allclose(stock.encode(["acid"]), learned.encode(["acid"]), atol=1e-4)
    assert not np.allclose(pipeline.model_from_recipe(recipe).encode(["acid"]), learned.encode(["acid"]), atol=1e-4)

    # The recipe that ran is kept, and runs again, to the same weights; beside the model it tells no places.
    assert load_recipe(tmp_path / "out" / "recipe.yaml") == recipe_without_places(recipe)
    kept = load_recipe(tmp_path / "out-work" / "recipe.yaml")
    assert kept == recipe
    again = pipeline.run(kept, tmp_path / "again")
    assert [result.ndcg_at_10 for _, result in again] == [result.ndcg_at_10 for _, result in rows]
    assert (tmp_path / "again" / "recipe.yaml").read_bytes() == (tmp_path / "out" / "recipe.yaml").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()

    log = json.loads((tmp_path / "out-work" / "learn" / "training_log.json").read_text())
    assert any("eval_bottleneck_gain" in entry for entry in log)


def test_the_card_has_the_results_the_data_check_and_how_it_was_made(tiny_base, pairs_file, tmp_path):
    recipe = recipe_for(tiny_base("llama"), pairs_file)
    rows = pipeline.run(recipe, tmp_path / "out", command="lbr-st train --output out")
    card = (tmp_path / "out" / "README.md").read_text()
    for label, score in rows:
        assert f"| {label} | {score.ndcg_at_10:.4f} |" in card
    written = json.loads((tmp_path / "out-work" / "results.json").read_text())
    assert [row["label"] for row in written] == [label for label, _ in rows]
    assert f"`{written[0]['dataset_revision']}`" in card
    assert f"Scored on {written[0]['date'][:10]}" in card
    assert "```bash\nlbr-st train --output out\n```" in card
    assert "## Training data against evaluation data" in card
    assert (tmp_path / "out-work" / "contamination" / "1" / "contamination.json").is_file()
    assert "The base model was pre-trained on text from the web" in card
    for suffix in ("png", "svg"):
        assert (tmp_path / "out-work" / "plots" / f"training.{suffix}").is_file()


def printed(card):
    """Return what the first Python block of a card prints, run in the current folder, and what it says there."""
    code = card.partition("```python\n")[2].partition("```")[0]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue(), "".join(line.removeprefix("# ") + "\n" for line in code.splitlines() if line[:2] == "# ")


@pytest.mark.parametrize("asked", [False, True])
def test_the_card_of_a_users_own_data(tiny_base, pairs_file, tmp_path, monkeypatch, asked):
    recipe = recipe_for(tiny_base("llama"), pairs_file, name=None, release=ReleaseConfig(examples=asked))
    recipe.release.license = "cc-by-sa-4.0" if asked else None
    rows = pipeline.run(recipe, tmp_path / "my model")
    card = (tmp_path / "my model" / "README.md").read_text()
    head = ModelCard(card).data
    assert rows[-1][1].model == "my-model/released"
    assert (head.model_name, head.license, head.base_model) == ("my model", recipe.release.license, None)
    assert head.eval_results[0].metric_value == rows[-1][1].ndcg_at_10
    assert "\n# my model\n" in card
    assert ("none is stated here" in card) == (not asked)
    assert "Its base, base-llama" in card
    # No row of the data, unless it is asked for; no name of ours where people read it; the results come first.
    assert any(row["query"] in card for row in map(json.loads, pairs_file.read_text().splitlines())) == asked
    assert "lbr_st." not in card
    assert "<!-- -" not in card
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    assert headings[:2] == ["## Results", "## Use"]
    assert "eprint = {2601.11124}" in card.partition("## Citation")[2]
    assert card.partition("## Training data against")[2].lstrip().partition("\n\n")[2].startswith("<details>")
    monkeypatch.chdir(tmp_path)
    output, said = printed(card)
    assert output == said != ""
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".lock")]
    assert not (tmp_path / "my model-work" / "results" / "results").exists()
    # A bundle has the name of the run's folder, if none is given, and what is built from it says the same.
    made = bundle(tmp_path / "my model", "mine", into=tmp_path, base=recipe.model.base)
    built = build_released(str(made), "built", base=recipe.model.base)
    again = (built / "README.md").read_text()
    assert (ModelCard(again).data.model_name, ModelCard(again).data.license) == ("mine", recipe.release.license)
    assert printed(again)[0] == printed(again)[1]


def test_a_teacher_is_asked_once_and_named_on_the_card_with_its_licence(
    bert, tiny_base, pairs_file, tmp_path, monkeypatch
):
    bert().save(str(tmp_path / "general"))
    (tmp_path / "general" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# General\n")
    recipe = recipe_for(tiny_base("llama"), pairs_file)
    recipe.represent.teacher, recipe.represent.num_hard_negatives = str(tmp_path / "general"), 1
    recipe.evaluate.enabled = False
    pipeline.run(recipe, tmp_path / "out")
    assert len([*(tmp_path / "out-work" / "data").glob("teacher-*/*")]) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "contrastive training of the last appended token's state, taught by general)" in card
    assert "- Teacher general: licence cc-by-4.0" in card
    assert str(tmp_path) not in card
    facts = json.loads((tmp_path / "out-work" / "card.json").read_text())
    assert "Teacher general: licence cc-by-4.0" in facts["data"]
    # Stage 2 again, as after it was interrupted: nothing is asked, and the weights are the same.
    (tmp_path / "out-work" / "represent").rename(tmp_path / "before")
    monkeypatch.setattr(teacher, "_answers", None)
    pipeline.run(recipe, tmp_path / "out", overwrite=True)
    weights = [
        load_file(place / "adapter_model.safetensors")
        for place in (tmp_path / "before", tmp_path / "out-work" / "represent")
    ]
    assert all(np.array_equal(weights[1][key], weight) for key, weight in weights[0].items())


def test_a_teacher_that_is_missing_stops_a_run_before_stage_1(tiny_base, pairs_file, tmp_path):
    recipe = recipe_for(tiny_base("llama"), pairs_file)
    recipe.represent.teacher = str(tmp_path / "missing")
    with pytest.raises(LBRError, match="missing: no such folder"):
        pipeline.run(recipe, tmp_path / "out")
    assert not (tmp_path / "out-work" / "learn").exists()


def test_another_model_is_scored_beside_if_named(bert, tiny_base, pairs_file, tmp_path):
    bert().save(str(tmp_path / "general"))
    recipe = recipe_for(tiny_base("llama"), pairs_file, evaluate=EvaluateConfig(beside=str(tmp_path / "general")))
    data = SimpleNamespace(test=evaluation_set(recipe))
    scores = pipeline._Scores(recipe, data, tmp_path / "scores", "")
    scores.baselines()
    assert [label for label, _ in scores.rows] == ["BM25", "general"]
    assert (scores.rows[-1][1].model, scores.rows[-1][1].num_queries) == ("lbr-toy/beside", 8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("contrastive-only", "lbr-st: *represent* (contrastive"),
        ("causal-lm", "*learn* (plain causal language modelling"),
    ],
)
def test_a_baselines_card_claims_no_bottleneck(tiny_base, pairs_file, tmp_path, name, said):
    recipe = baseline(recipe_for(tiny_base("llama"), pairs_file), name)
    recipe.evaluate.enabled = False
    pipeline.run(recipe, tmp_path / "out")
    how = (tmp_path / "out" / "README.md").read_text().split("## How it was trained")[1].split("\n## ")[0]
    assert "A part or a baseline of" in how
    assert said in how
    assert "bottleneck and generates" not in how
    assert "information bottleneck" not in how


def test_a_second_run_takes_finished_stages_from_disk(tiny_base, pairs_file, tmp_path, monkeypatch):
    recipe = recipe_for(tiny_base("llama"), pairs_file)
    pipeline.run(recipe, tmp_path / "out")

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(pipeline, "learn", never)
    monkeypatch.setattr(pipeline, "represent", never)
    pipeline.run(recipe, tmp_path / "out", overwrite=True)


def test_an_interrupted_stage_continues_but_not_with_another_recipe(tiny_base, pairs_file, tmp_path, monkeypatch):
    recipe = recipe_for(tiny_base("llama"), pairs_file)
    resumed = []

    def interrupted(model, pairs, config, *, output_dir, resume, **options):
        resumed.append(resume)
        (output_dir / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        (output_dir / "checkpoint-1" / "trainer_state.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "learn", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_learn(recipe, tmp_path / "out")
    recipe.learn.max_steps += 1
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_learn(recipe, tmp_path / "out")
    assert resumed == [False, True, False]
    assert not (tmp_path / "out").exists()


def test_a_work_folder_of_another_recipe_is_refused(tiny_base, pairs_file, tmp_path):
    recipe = recipe_for(tiny_base("llama"), pairs_file, evaluate=EvaluateConfig(enabled=False))
    pipeline.run(recipe, tmp_path / "out")
    recipe.seed = 1
    with pytest.raises(LBRError, match="another recipe"):
        pipeline.run(recipe, tmp_path / "other", work_folder=tmp_path / "out-work")


def test_settings_that_change_no_result_do_not_make_another_recipe(tiny_base, pairs_file, tmp_path, monkeypatch):
    recipe, work = recipe_for(tiny_base("llama"), pairs_file), tmp_path / "out-work"
    recipe.evaluate.precision = "float32"  # "auto" takes bfloat16 where that is faster
    pipeline.run(recipe, tmp_path / "out")
    never = {name: lambda *args, **kwargs: pytest.fail("trained again") for name in ("learn", "represent")}
    for name, stage in never.items():
        monkeypatch.setattr(pipeline, name, stage)
    recipe.represent.mini_batch_tokens, recipe.represent.eval_steps, recipe.learn.eval_steps = 7, 1, 1
    recipe.evaluate.precision, recipe.evaluate.batch_size = "bfloat16", 2
    rows = pipeline.run(recipe, tmp_path / "again", work_folder=work)
    assert load_recipe(work / "recipe.yaml") == recipe
    # Scores of another precision are filed apart from the first ones.
    assert [score.experiment.get("autocast") for label, score in rows if label != "BM25"] == ["bfloat16"] * 2
    filed = list((work / "results" / "per_query").glob("lbr-toy__learn/**/*.json"))
    assert sorted("autocast_bfloat16" in path.parts for path in filed) == [False, True]


def test_checkpoints_are_kept_for_what_trains_the_same(tmp_path):
    checkpoints, recipe = tmp_path / "checkpoints", recipe_for("x", "y")
    assert not pipeline.may_resume(checkpoints, recipe)
    (checkpoints / "checkpoint-1").mkdir()
    (checkpoints / "pieces.json").touch()
    recipe.learn.eval_steps = 1
    assert pipeline.may_resume(checkpoints, recipe)
    assert (checkpoints / "pieces.json").is_file()
    assert load_recipe(checkpoints / "recipe.yaml") == recipe
    recipe.learn.learning_rate = 0.1
    assert not pipeline.may_resume(checkpoints, recipe)
    assert [path.name for path in checkpoints.iterdir()] == ["recipe.yaml"]
    assert load_recipe(checkpoints / "recipe.yaml") == recipe


def test_existing_output_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with pytest.raises(LBRError, match="already exists"):
        pipeline.run(Recipe(data=DataConfig(source=str(tmp_path / "missing.jsonl"))), tmp_path / "out")


def test_the_next_commands_run_as_printed(tiny_base, pairs_file, tmp_path, capsys):
    pipeline.run(recipe_for(tiny_base("llama"), pairs_file), tmp_path / "a model")
    _, _, after = capsys.readouterr().err.partition("Next:\n")
    _, evaluate, compare = after.splitlines()
    assert main([*shlex.split(evaluate)[1:], "--output", str(tmp_path / "scores")]) == 0
    assert main([*shlex.split(compare)[1:], "--output", str(tmp_path / "comparison")]) == 0
    assert "lbr-toy/released" in capsys.readouterr().out


def test_training_is_reported_where_the_recipe_says(tiny_base, pairs_file, tmp_path, monkeypatch):
    logged = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append((args.run_name, logs.keys()))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Reporter)
    monkeypatch.setattr(pipeline, "get_available_reporting_integrations", lambda: ["trackio"])
    recipe = recipe_for(tiny_base("llama"), pairs_file, report_to="trackio", evaluate=EvaluateConfig(enabled=False))
    recipe.name = None
    pipeline.run(recipe, tmp_path / "out")
    found = {name: set().union(*(keys for one, keys in logged if one == name)) for name, _ in logged}
    assert found["out-work-learn"] >= {"loss", "eval_bottleneck_gain"}
    assert "loss" in found["out-work-represent"]
    assert load_recipe(tmp_path / "out" / "recipe.yaml").report_to == "none"  # whoever runs it again decides
    recipe.report_to = "wandb"
    with pytest.raises(LBRError, match=r"report_to: is wandb, which is not installed\. Run: pip install wandb"):
        pipeline.run(recipe, tmp_path / "other")
    assert not (tmp_path / "other-work").exists()


def test_stages_alone_and_evaluate(tiny_base, pairs_file, tmp_path, capsys):
    recipe = recipe_for(tiny_base("llama"), pairs_file)
    pipeline.run_learn(recipe, tmp_path / "learned")
    pipeline.run_represent(recipe, str(tmp_path / "learned"), tmp_path / "represented")
    result = pipeline.run_evaluate(str(tmp_path / "represented"), recipe, tmp_path / "scores")
    assert f"{result.ndcg_at_10:.4f}" in capsys.readouterr().out
    assert (tmp_path / "learned" / "recipe.yaml").is_file()
    with pytest.raises(LBRError, match="already exists"):
        pipeline.run_learn(recipe, tmp_path / "learned")


def test_texts_alone_are_refused_where_pairs_are_needed(tiny_base, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"the acid of class {i} and a salt"}) for i in range(9)))
    recipe = recipe_for(tiny_base("llama"), texts)
    recipe.learn.pairs, recipe.represent.enabled = ["reconstruct"], False
    with pytest.raises(LBRError, match=r"data\.pairs: stage 2 needs query-document pairs"):
        pipeline.run_represent(recipe, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(LBRError, match=r"texts\.jsonl: this data has no held-out queries"):
        pipeline.run_evaluate("model", recipe, tmp_path / "scores")


def test_no_text_of_the_evaluation_is_trained_on(tiny_base, pairs_file):
    recipe = recipe_for("x", pairs_file)
    recipe.learn.pairs = ["natural", "reverse", "reconstruct", "continue"]
    sources = read_sources(recipe)
    tables, _ = without_evaluation(recipe, sources)
    data = SimpleNamespace(test=sources.test, **tables)
    assert data.test is not None
    judged = [data.test.corpus[d] for qrel in data.test.qrels.values() for d in qrel]
    taken = {normalise(text) for text in (*data.test.queries.values(), *judged)}
    assert taken
    prompts = (recipe.model.query_prompt, recipe.model.document_prompt)
    train, held_out = learn_pairs(recipe, tables)
    seen = {normalise(row[c]) for row in data.pairs for c in ("query", "document")} | {
        normalise(text) for text in data.texts["text"]
    }
    for row in [*train, *held_out]:
        context = row["context"]
        for prompt in prompts:
            context = context.removeprefix(prompt)
        seen |= {normalise(context), normalise(row["target"])}
    assert not seen & taken
    # Nor is the gain measured on a text that stage 1 trained on.
    assert not {normalise(row["target"]) for row in held_out} & {normalise(row["target"]) for row in train}


def test_beir_folder_keeps_its_own_test_split(tmp_path):
    folder = tmp_path / "beir"
    corpus = {f"d{i}": f"the acid of class {i}" for i in range(12)}
    # The training query q3 is spelt like the test query q0, and d1 is judged for both sides.
    queries = {f"q{i}": f"acid {i}" for i in range(12)} | {"q3": "Acid  0"}
    test, train = {"q0": {"d0": 1}, "q1": {"d1": 1}}, {f"q{i}": {f"d{i}": 1} for i in range(3, 12)} | {"q2": {"d1": 1}}
    splits = {"test": test, "train": train}
    write_beir({n: RetrievalSet(n, corpus, {q: queries[q] for q in of}, of) for n, of in splits.items()}, folder)
    recipe = recipe_for("x", folder)
    data = SimpleNamespace(**without_evaluation(recipe, read_sources(recipe))[0])
    assert sorted(data.pairs["query"]) == sorted(f"acid {i}" for i in range(4, 12))


def test_bad_data_is_named_before_training(tiny_base, tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "a", "document": "b"}\nnot json\n')
    monkeypatch.setattr(pipeline, "model_from_recipe", lambda *a, **k: pytest.fail("started building a model"))
    with pytest.raises(LBRError, match=r"pairs\.jsonl, line 2"):
        pipeline.run(recipe_for(tiny_base("llama"), path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_held_nothing_out_is_not_scored_on_what_it_saw(tiny_base, tmp_path):
    rows = [{"query": f"acid {n}", "document": f"the salt of class {n}", "label": n % 4 > 0} for n in range(60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    recipe = recipe_for(tiny_base("llama"), path, evaluate=EvaluateConfig(enabled=False))
    recipe.learn.max_steps = recipe.represent.max_steps = 1
    assert pipeline.run(recipe, tmp_path / "out") == []
    told = "- pairs.jsonl: right pairs: 45 of 60; hard negatives of their query: 0; left out: 15."
    assert told in (tmp_path / "out" / "README.md").read_text().splitlines()
    for asked in (recipe, recipe_for(tiny_base("llama"), path)):
        with pytest.raises(LBRError, match="no held-out queries, and a model may have been trained on all of it"):
            pipeline.run_evaluate(str(tmp_path / "out"), asked, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    # Other data are another matter.
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps({"query": f"base {n}", "document": f"the ester {n}"}) for n in range(60)))
    asked = recipe_for(tiny_base("llama"), other)
    assert pipeline.run_evaluate(str(tmp_path / "out"), asked, tmp_path / "scores").num_queries == 6


def test_a_run_from_an_embedder_keeps_its_prompts_and_releases_a_share(tiny_base, pairs_file, tmp_path):
    base = embedder("qwen3-embedding", tiny_base, tmp_path / "base")
    model = ModelConfig(base=base, num_bottleneck_tokens=1, max_seq_length=160, lora_rank=4)
    plain = tiny_base("llama")
    recipe = recipe_for(plain, pairs_file, evaluate=EvaluateConfig(enabled=False))
    recipe.release.scale = 0.5
    with pytest.raises(LBRError, match=r"release\.scale: .*is a language model, no embedder"):
        pipeline.run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out-work" / "learn-checkpoints").exists()
    recipe.model = model
    pipeline.run(recipe, tmp_path / "out", overwrite=True)
    half = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert "the share 0.5 was kept" in (tmp_path / "out" / "README.md").read_text()
    assert half.prompts == {"query": INSTRUCT, "document": ""}
    learnt = datasets.load_from_disk(str(tmp_path / "out-work" / "data" / FOLDER / "learn"))
    assert any(context.startswith(INSTRUCT) for context in learnt["context"])
    # Another share of the same training: the stages are taken from disk.
    kept = (tmp_path / "out-work" / "represent" / "adapter_model.safetensors").stat().st_mtime_ns
    for scale, like in ((1.0, tmp_path / "out-work" / "represent"), (0.0, base)):
        recipe.release.scale = scale
        pipeline.run(recipe, tmp_path / f"{scale}", work_folder=tmp_path / "out-work")
        found, expected = (model.encode_query(["an acid"])[0] for model in map(_read, (tmp_path / f"{scale}", like)))
        assert found @ expected >= 0.9999
        assert np.abs(found - half.encode_query(["an acid"])[0]).max() > 1e-4
    assert (tmp_path / "out-work" / "represent" / "adapter_model.safetensors").stat().st_mtime_ns == kept
    # A bundle is what the run released last, though the stage was trained for another share.
    made = bundle(tmp_path / "out-work", into=tmp_path / "bundles", base=base)
    assert load_recipe(made / "recipe.yaml").release.scale == 0.0
    assert load_recipe(tmp_path / "out-work" / "represent" / "recipe.yaml").release.scale == 0.5
    built = _read(build_released(str(made), tmp_path / "built", base=base))
    assert built.encode_query(["an acid"])[0] @ _read(base).encode_query(["an acid"])[0] >= 0.9999


def _read(folder):
    return load_by_name(str(folder))[0]
