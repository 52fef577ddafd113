"""The recipe: round trips, refusals and ranges."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe, field_types, load_recipe, save_recipe
from lbr_st.recipe_arguments import RETIRED
from lbr_st.training.model import same_results


def changed(**values):
    recipe = Recipe()
    for key, value in values.items():
        recipe.put(key.replace("__", "."), value)
    return recipe


def load(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_partial_file_keeps_defaults(tmp_path):
    recipe = load(tmp_path, "learn:\n  max_steps: 3\n  learning_rate: 1e-5\n")
    assert recipe == changed(learn__max_steps=3, learn__learning_rate=1e-5)
    assert load(tmp_path, "{}") == Recipe()
    assert load(tmp_path, "learn: {bottleneck: none}").learn.bottleneck == "none"


def test_what_may_change_while_a_run_is_interrupted():
    may = {key for key in field_types() if same_results(changed(**{key: "another"}), Recipe())}
    steps = {"learn.eval_steps", "represent.eval_steps"}
    read = {"evaluate.precision", "evaluate.batch_size", "name", "release.scale", "release.license", "release.examples"}
    assert may == {"represent.mini_batch_tokens", "report_to", *read, *steps}
    assert not same_results(changed(represent__eval_steps=7, seed=1), Recipe())


text = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], include_characters="\n\t"), max_size=20)
line = text.map(lambda value: value.replace("\n", " ").replace("\t", " ")).filter(str.strip)
word = st.from_regex(r"\w[\w.-]{0,20}", fullmatch=True)
positive = st.integers(1, 2**40)
share = st.floats(0, 1, exclude_max=True)
weight = st.floats(0, allow_infinity=False)
rate = st.floats(0, exclude_min=True, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "name": word,
            "seed": st.integers(0, 2**32 - 1),
            "precision": st.sampled_from(["auto", "float32", "bfloat16"]),
            "model__base": line,
            "model__query_prompt": text,
            "model__projection_dim": st.none() | positive,
            "model__lora": st.booleans(),
            "model__lora_dropout": share,
            "data__texts": st.none() | line,
            "learn__pairs": st.lists(
                st.sampled_from(["natural", "reverse", "reconstruct", "continue"]), min_size=1, unique=True
            ),
            "learn__learning_rate": rate,
            "learn__context_weight": weight,
        },
    )
)
@example(values={})
def test_any_valid_recipe_survives_its_file(tmp_path_factory, values):
    recipe = changed(**values)
    folder = tmp_path_factory.mktemp("recipe")
    save_recipe(recipe, folder / "a.yaml")
    loaded = load_recipe(folder / "a.yaml")
    assert loaded == recipe
    save_recipe(loaded, folder / "b" / "c.yaml")
    assert (folder / "a.yaml").read_bytes() == (folder / "b" / "c.yaml").read_bytes()


@pytest.mark.parametrize(
    ("yaml", "parts"),
    [
        ("modle: {}", ["unknown key modle", "Did you mean model?"]),
        ("model:\n  lora_rnk: 3", ["unknown key model.lora_rnk", "model.lora_rank?"]),
        ("max_steps: 3", ["learn.max_steps or represent.max_steps"]),
        ("model: 3", ["recipe.yaml: model: must hold keys"]),
        ("", ["must hold keys"]),
        ("1: 2", ["unknown key 1"]),
        ("a: b: c", ["line 1", "not valid YAML"]),
        ("seed: 2001-99-99", ["not valid YAML"]),
        ("name: " + "[" * 1200 + "]" * 1200, ["not valid YAML"]),
        ("name: 3", ["name: must be text or null, not 3"]),
        ("seed: 1.5", ["seed: must be a whole number, not 1.5"]),
        ("model: {projection_dim: 0}", ["model.projection_dim: must be above 0 or null, not 0"]),
        ("model: {lora: 1}", ["model.lora: must be true or false, not 1"]),
        ("model: {token_init: zeros}", ["model.token_init: must be one of mean, eos, random, not zeros"]),
        ("learn: {learning_rate: fast}", ["learn.learning_rate: must be a number, not fast"]),
        ("represent: {matryoshka_dims: [64, big]}", ["must be a list, each item a", "not [64, 'big']"]),
        ("learn: {pairs: [backwards]}", ["learn.pairs: must be a list out of natural,", "not ['backwards']"]),
    ],
)
def test_bad_files_are_refused_in_one_plain_line(tmp_path, yaml, parts):
    with pytest.raises(LBRError) as caught:
        load(tmp_path, yaml)
    message = str(caught.value)
    assert all(part in message for part in ["recipe.yaml", *parts]), message
    assert "\n" not in message
    assert "<class" not in message


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(LBRError, match=r"latin\.yaml: is not valid YAML.*UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_keys_of_older_recipes_are_ignored_with_one_notice(tmp_path, capsys):
    text = "learn:\n  nll_kernel: liger\n  max_steps: 3\nrepresent:\n  replay_weight: x\n  mini_batch_size: 4\n"
    assert load(tmp_path, f"{text}  batch_tokens: 4096\n") == changed(learn__max_steps=3)
    [notice] = capsys.readouterr().err.splitlines()
    assert all(part in notice for part in ["recipe.yaml", "ignored", *RETIRED])
    assert not set(RETIRED) & set(field_types())
    assert len(field_types()) == 79


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("name", " "),
        ("model.query_prompt", "a\rb"),
        ("data.source", "\udc80"),
        ("model.num_bottleneck_tokens", 0),
        ("model.max_seq_length", 4),
        ("model.lora_dropout", 1.0),
        ("represent.teacher_weight", 1.01),
        ("release.scale", 1.01),
        ("release.scale", -0.5),
        ("learn.learning_rate", 0.0),
        ("learn.learning_rate", math.nan),
        ("learn.pairs", []),
        ("learn.pairs", ["natural", "natural"]),
        ("data.also", ["chebi"]),
        ("represent.matryoshka_dims", [64, 0]),
        ("seed", True),
        ("learn.learning_rate", 10**400),
        # What Python code can set and a file cannot: values of another type.
        ("model.num_bottleneck_tokens", "4"),
        ("model.base", None),
        ("learn.max_steps", 3.0),
    ],
)
def test_values_out_of_range_are_refused_by_key(key, value):
    with pytest.raises(LBRError) as caught:
        changed(**{"data__source": "chebi", key.replace(".", "__"): value}).validate()
    assert caught.value.where == key


def test_values_that_contradict_each_other():
    with pytest.raises(LBRError, match="nothing to train"):
        changed(learn__enabled=False, represent__enabled=False).validate()
    with pytest.raises(LBRError, match='only bottleneck="embedding" decodes from the variational z'):
        changed(learn__rate_weight=0.5).validate()
    changed(learn__rate_weight=0.5, learn__bottleneck="embedding").validate()
    with pytest.raises(LBRError, match=r"target_dropout: is 0\.1, but with learn\.bottleneck none"):
        changed(learn__bottleneck="none", learn__target_dropout=0.1).validate()
    with pytest.raises(LBRError, match=r"distil_weight: is 0\.1, but with learn\.bottleneck none"):
        changed(learn__bottleneck="none", learn__distil_weight=0.1).validate()
    with pytest.raises(LBRError, match=r"distil_reader: is base, but with model\.lora false"):
        changed(learn__distil_reader="base", learn__distil_weight=0.1, model__lora=False).validate()
    changed(learn__distil_reader="base", learn__distil_weight=0.1).validate()
    with pytest.raises(LBRError, match=r"context_weight: is 0, .*learn\.bottleneck none.*reconstruct"):
        changed(learn__bottleneck="none", learn__context_weight=0).validate()
    changed(learn__bottleneck="none", learn__context_weight=0, learn__pairs=["natural"]).validate()
    for key, value in (("model__lora", False), ("model__projection_dim", 8)):
        with pytest.raises(LBRError, match=r"release\.scale: is 0\.5, but only adapters and bottleneck rows"):
            changed(release__scale=0.5, **{key: value}).validate()
        changed(**{key: value}).validate()
    changed(release__scale=0.5).validate()


@pytest.mark.parametrize("bottleneck", ["attention", "embedding"])
def test_a_bottleneck_without_tokens_is_refused_where_it_would_be_trained(bottleneck):
    off = {"model__num_bottleneck_tokens": 0, "learn__bottleneck": bottleneck}
    with pytest.raises(LBRError, match=rf"model\.num_bottleneck_tokens: is 0, but learn\.bottleneck is {bottleneck}"):
        changed(**off).validate()
    changed(**off, learn__enabled=False).validate()
    none = {**off, "learn__bottleneck": "none"}
    changed(**none).validate()
    with pytest.raises(LBRError, match=r"model\.max_seq_length: 1 tokens leave no room"):
        changed(**none, model__max_seq_length=1).validate()


@pytest.mark.parametrize("name", ["0E0", "1e3", "1_000", "0x1f", "12:30:45", "yes", "null", "3"])
def test_a_text_that_looks_like_a_number_stays_text(tmp_path, name):
    recipe = changed(model__base=name)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
