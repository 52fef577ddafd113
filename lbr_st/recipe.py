"""The recipe: one typed, serialisable description of a whole run, its YAML form, and its baselines.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from lbr_st.errors import LBRError
from lbr_st.files import LOCAL, UNTRAINED, published, write_whole
from lbr_st.recipe_arguments import check_value, did_you_mean, read_values
from lbr_st.recipe_sections import (
    DataConfig,
    EvaluateConfig,
    LearnConfig,
    ModelConfig,
    ReleaseConfig,
    RepresentConfig,
    RunConfig,
)


@dataclass
class Recipe(RunConfig):
    """A whole run: learn, represent, release, evaluate. What holds for the whole run, and a section for each part."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    represent: RepresentConfig = field(default_factory=RepresentConfig)
    release: ReleaseConfig = field(default_factory=ReleaseConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def flat(self) -> dict[str, Any]:
        """Return every value by its dotted key, in the order of the fields."""
        values = {}
        for key in field_types():
            section, _, name = key.rpartition(".")
            values[key] = getattr(getattr(self, section) if section else self, name)
        return values

    def put(self, key: str, value: Any) -> None:
        """Set the value with a dotted key; :meth:`validate` checks it."""
        section, _, name = key.rpartition(".")
        setattr(getattr(self, section) if section else self, name, value)

    def validate(self) -> None:
        """Raise :class:`LBRError` for a value of the wrong type, out of range, or that contradicts another.

        A recipe from a file or the command line has been checked. Only one made in Python needs this.
        """
        for key, value in self.flat().items():
            check_value(key, field_types()[key], value)
        for key, what, fix in self._contradictions():
            raise LBRError(what, where=key, fix=fix)

    def _contradictions(self) -> Iterator[tuple[str, str, str]]:
        """Yield (key, what is wrong, what to do) for values that do not go together."""
        model, data, learn = self.model, self.data, self.learn
        if not (learn.enabled or self.represent.enabled):
            fix = "Switch on learn.enabled, represent.enabled or both."
            yield "learn.enabled", "both stages are off, so there is nothing to train.", fix
        appended = model.num_bottleneck_tokens or 1  # without a bottleneck, the end-of-text token
        if model.max_seq_length <= appended:
            what = f"{model.max_seq_length} tokens leave no room for text next to the appended ones."
            yield "model.max_seq_length", what, f"Set it above {appended}."
        if model.quantize and not model.lora:
            what = f"is {model.quantize}, but 4-bit weights cannot be trained themselves."
            yield "model.quantize", what, "Set model.lora to true, or model.quantize to null."
        if self.release.scale != 1 and (not model.lora or model.projection_dim):
            what = f"is {self.release.scale}, but only adapters and bottleneck rows can be scaled."
            yield "release.scale", what, "Set it to 1, or model.lora to true and model.projection_dim to null."
        if learn.enabled and learn.bottleneck != "none" and not model.num_bottleneck_tokens:
            what = f"is 0, but learn.bottleneck is {learn.bottleneck}, which needs bottleneck tokens."
            fix = "Set it to 1 or more, or learn.bottleneck to none, or switch off learn.enabled."
            yield "model.num_bottleneck_tokens", what, fix
        if learn.rate_weight and learn.bottleneck != "embedding":
            what = f'is {learn.rate_weight}, but only bottleneck="embedding" decodes from the variational z.'
            yield "learn.rate_weight", what, "Set learn.bottleneck to embedding or learn.rate_weight to 0."
        if learn.bottleneck == "none":
            for name in ("target_dropout", "bag_weight", "distil_weight"):
                if value := getattr(learn, name):
                    what = f"is {value}, but with learn.bottleneck none there is no bottleneck to use."
                    yield f"learn.{name}", what, "Set it to 0, or choose another learn.bottleneck."
            if not learn.context_weight and "reconstruct" in (learn.pairs or ["reconstruct"]):
                what = "is 0, but with learn.bottleneck none the text of a reconstruct pair is learnt as a context."
                fix = "Set it above 0 (1 is plain causal language modelling), or leave reconstruct out of learn.pairs."
                yield "learn.context_weight", what, fix
        if learn.distil_weight and learn.distil_reader == "base" and not model.lora:
            what = "is base, but with model.lora false there are no adapters that could be left out."
            yield "learn.distil_reader", what, "Set it to self, or model.lora to true."
        for key, kinds in (("learn.pairs", learn.pairs), ("data.make_pairs", data.make_pairs)):
            if kinds == []:
                yield key, "is empty.", "Name at least one kind of pair."
        if "question" in (data.make_pairs or ()) and not data.writer:
            yield "data.make_pairs", "names question, but data.writer does not say what writes them.", "Name one."
        if data.source in data.also:
            yield "data.also", f"names the source {data.source} again.", "Leave it out."


SECTIONS: dict[str, Any] = {key: kind for key, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}


@cache
def field_types() -> dict[str, Any]:
    """Return the type of every field by its dotted key."""
    types: dict[str, Any] = get_type_hints(RunConfig)
    for section, kind in SECTIONS.items():
        types |= {f"{section}.{name}": hint for name, hint in get_type_hints(kind).items()}
    return types


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe in YAML; fields that it does not name keep their defaults.

    Keys that older versions had are ignored with a notice.

    Raises:
        LBRError: The file is not YAML, a key is unknown, or a value is wrong.
        OSError: The file cannot be read.
    """
    recipe = Recipe()
    for key, value in read_values(Path(path), field_types(), SECTIONS).items():
        recipe.put(key, value)
    try:
        recipe.validate()
    except LBRError as error:
        raise error.within(str(path)) from None
    return recipe


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every field of a recipe to a YAML file, which is replaced if it exists; :func:`load_recipe` reads it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))


STAGES = {"learn": "Stage 1, learn", "represent": "Stage 2, represent"}  # as a person is told
STEPS = 200  # of either stage where a recipe does not say how many


def with_steps(config: Any, pairs: int | None = None) -> Any:
    """Return a stage's section with a number of steps: its own, or as many as read so many ``pairs`` once."""
    if config.max_steps is not None:
        return config
    return replace(config, max_steps=STEPS if pairs is None else -(-pairs // config.batch_size))


BASELINES = ("contrastive-only", "causal-lm")


def baseline(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of a baseline: a copy in which only what must differ is changed.

    - ``contrastive-only`` switches off stage 1: what stage 1 brings is missing.
    - ``causal-lm`` reads context and target of stage 1 as plain text, with nothing hidden and the same weight for every
      token, and switches off the terms that only a bottleneck has: what the bottleneck brings is missing.

    The name, one of :data:`BASELINES`, is appended to the recipe's.

    Raises:
        LBRError: There is no such baseline, or the recipe lacks the stage that makes the baseline differ from it.
    """
    if name not in BASELINES:
        fix = did_you_mean(name, BASELINES) or f"Choose {' or '.join(BASELINES)}."
        raise LBRError(f"unknown baseline {name!r}.", where="baseline", fix=fix)
    needed = "represent" if name == "contrastive-only" else "learn"
    if not getattr(recipe, needed).enabled:
        what = f"the baseline {name} needs the stage {needed}, which the recipe leaves out."
        raise LBRError(what, where=f"{needed}.enabled", fix="Start from a recipe with both stages.")
    made = deepcopy(recipe)
    made.name = recipe.name and f"{recipe.name}-{name}"
    if name == "contrastive-only":
        made.learn.enabled = False
    else:
        made.learn.bottleneck = "none"
        made.learn.context_weight = 1.0
        made.learn.rate_weight = made.learn.target_dropout = made.learn.bag_weight = made.learn.distil_weight = 0.0
    return made


def quick_form(full: Recipe, *, max_seq_length: int, learn_batch_size: int) -> Recipe:
    """Return a recipe's quick form: the same machine on its main source, in minutes on two CPU cores.

    How many minutes is decided by the longest text in tokens, and by the pairs in a step of stage 1.
    """
    return Recipe(
        name=full.name and f"{full.name}-quick",
        seed=full.seed,
        model=replace(full.model, max_seq_length=max_seq_length, lora_rank=8, lora_alpha=16),
        data=replace(full.data, also=[], archives=[], synonyms=False),
        # No context loss, to save time: its logits span the whole vocabulary at every position.
        learn=LearnConfig(
            max_steps=12,
            batch_size=learn_batch_size,
            learning_rate=5e-4,
            token_learning_rate=3e-3,
            warmup_steps=3,
            eval_steps=12,
            num_eval_pairs=16,
            max_target_tokens=24,
            context_weight=0.0,
        ),
        represent=RepresentConfig(
            max_steps=45, batch_size=64, learning_rate=1e-3, token_learning_rate=3e-3, warmup_steps=4
        ),
        release=replace(full.release),
        # A fixed slice of the test queries, so that it ends while you wait; the table names it.
        evaluate=EvaluateConfig(num_queries=300, num_documents=2000, batch_size=32, beside="all-MiniLM-L6-v2"),
    )


def refuse_no_data(recipe: Recipe) -> None:
    """Raise :class:`LBRError` if a recipe does not name its data."""
    if not recipe.data.source:
        fix = "Give a folder of documents, a file of pairs, or a task such as chebi: --data.source my_documents/"
        raise LBRError("no data is named.", where="data.source", fix=fix)


DATA_PLACES = ("data.source", "data.texts", "data.pairs", "data.queries", "data.writer")
PLACES = ("model.base", *DATA_PLACES, "represent.teacher", "evaluate.beside")


def recipe_without_places(recipe: Recipe, known: Collection[str] = ()) -> Recipe:
    """Return the recipe as a release states it: with :func:`lbr_st.files.published` in place of each name."""
    made = deepcopy(recipe)
    made.report_to = "none"
    for key in PLACES:
        if name := recipe.flat()[key]:
            made.put(key, published(name, known))
    return made


def refuse_unpublished(recipe: Recipe, keys: Iterable[str]) -> None:
    """Raise :class:`LBRError` if one of these keys names a file that was not published with the recipe."""
    values = {key: str(recipe.flat()[key]) for key in keys}
    if missing := {key: value for key, value in values.items() if value.removeprefix(UNTRAINED).startswith(LOCAL)}:
        what = f"only the machine that trained this model has {' and '.join(missing.values())}."
        flags = " ".join(f"--{key} PATH" for key in missing)
        raise LBRError(what, where=", ".join(missing), fix=f"Give it, or your own: {flags}.")
