"""The recipe: one typed, serialisable description of a whole run, and its YAML form.

Importing this module stays cheap: no torch, transformers, sentence_transformers or datasets.
"""

from __future__ import annotations

import math
import re
import unicodedata
from argparse import ArgumentError
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from lbr_st.errors import LBRError
from lbr_st.files import explain_disk_errors, write_whole
from lbr_st.recipe_arguments import add_recipe_arguments, check_keys, describe, explain, refuse_aliases, takes_null
from lbr_st.recipe_sections import (
    SECTIONS,
    DataConfig,
    EvaluateConfig,
    LearnConfig,
    ModelConfig,
    RepresentConfig,
    RunConfig,
)

__all__ = [
    "DataConfig",
    "EvaluateConfig",
    "LearnConfig",
    "ModelConfig",
    "Recipe",
    "RepresentConfig",
    "load_recipe",
    "save_recipe",
]

# Bounds of the number fields by key. Every number must be finite besides; null, where a field allows it, is in bounds.
_AT_LEAST: dict[str, float] = {
    "seed": 0,
    "model.num_bottleneck_tokens": 0,
    "model.projection_dim": 1,
    "model.max_seq_length": 1,
    "model.lora_rank": 1,
    "model.lora_alpha": 1,
    "model.lora_dropout": 0,
    "learn.max_steps": 0,
    "learn.batch_size": 1,
    "learn.batch_tokens": 1,
    "learn.warmup_steps": 0,
    "learn.context_weight": 0,
    "learn.rate_weight": 0,
    "learn.target_dropout": 0,
    "learn.bag_weight": 0,
    "learn.max_target_tokens": 1,
    "learn.eval_steps": 1,
    "learn.num_eval_pairs": 1,
    "represent.max_steps": 0,
    "represent.batch_size": 1,
    "represent.batch_tokens": 1,
    "represent.mini_batch_tokens": 1,
    "represent.mini_batch_size": 1,
    "represent.warmup_steps": 0,
    "represent.num_hard_negatives": 0,
    "represent.similar_group_size": 1,
    "represent.replay_weight": 0,
    "represent.eval_steps": 1,
    "evaluate.num_queries": 1,
    "evaluate.num_documents": 1,
    "evaluate.batch_size": 1,
}
_ABOVE_ZERO = (
    "learn.learning_rate",
    "learn.token_learning_rate",
    "represent.learning_rate",
    "represent.token_learning_rate",
    "represent.temperature",
)
_BELOW: dict[str, float] = {"seed": 2**32, "model.lora_dropout": 1, "learn.target_dropout": 1}
_FILES = ("model.base", "data.source", "data.texts", "data.pairs", "data.split", "evaluate.beside")
_MAY_BE_EMPTY = ("model.query_prompt", "model.document_prompt")


@dataclass
class Recipe(RunConfig):
    """A whole run: learn, represent, release, evaluate.

    Args:
        name: Name of the released model.
        seed: Seed of every random choice.
        precision: Arithmetic for training; auto lets the device decide.
        model: The base model and its bottleneck.
        data: Where text and pairs come from.
        learn: Stage 1.
        represent: Stage 2.
        evaluate: Retrieval evaluation.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    represent: RepresentConfig = field(default_factory=RepresentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def validate(self) -> None:
        """Check every value, so that a run fails before it starts rather than hours in.

        Raises:
            LBRError: A value is of the wrong type, out of range, or contradicts another; names its key.
        """
        self._check_types()
        values = self.flat()
        for key, value in values.items():
            if isinstance(value, bool | list) or value is None:
                continue
            if isinstance(value, str):
                _check_text(key, value)
            else:
                _check_number(key, value)
        self._check_together()

    def flat(self) -> dict[str, Any]:
        """Return every value by its dotted key, in the order of the fields."""
        nested = {
            key: {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
            for key, value in asdict(self).items()
        }
        return {key: value for part in nested.values() for key, value in part.items()}

    def _check_types(self) -> None:
        for key, kind in SECTIONS.items():
            if not isinstance(getattr(self, key), kind):
                raise LBRError(f"must be a {kind.__name__}, not {getattr(self, key)!r}.", where=key)
        try:
            read_back = recipe_from(_parser().parse_object(asdict(self))).flat()
        except (ArgumentError, TypeError, ValueError) as error:
            raise explain(error) from None
        for key, value in self.flat().items():
            # jsonargparse takes null for "not given" whatever the type says, and "4" for 4, "null" for null.
            if value is None and not takes_null(key):
                raise LBRError("must have a value, not null.", where=key, fix="Leave it out to keep the default.")
            if value != read_back[key]:
                raise LBRError(f"must be {describe(key)}, not {value!r}.", where=key)

    def _check_together(self) -> None:
        if not (self.learn.enabled or self.represent.enabled):
            raise LBRError(
                "both stages are off, so there is nothing to train.",
                where="learn.enabled",
                fix="Switch on learn.enabled, represent.enabled or both.",
            )
        appended = self.model.num_bottleneck_tokens or 1  # the end-of-text token, where there is no bottleneck
        if self.model.max_seq_length <= appended:
            raise LBRError(
                f"{self.model.max_seq_length} tokens leave no room for text beside the appended ones.",
                where="model.max_seq_length",
                fix=f"Set it above {appended}.",
            )
        if self.model.quantize and not self.model.lora:
            raise LBRError(
                f"is {self.model.quantize}, but 4-bit weights cannot be trained themselves.",
                where="model.quantize",
                fix="Set model.lora to true, or model.quantize to null.",
            )
        self._check_bottleneck()
        if not self.learn.pairs or len(set(self.learn.pairs)) < len(self.learn.pairs):
            raise LBRError(
                f"must name at least one kind of pair, each once, not {self.learn.pairs}.", where="learn.pairs"
            )
        trained = [self.data.source, *self.data.also]
        if len(set(trained)) < len(trained):
            fix = "Name each domain task once, and not the source."
            raise LBRError(
                f"{self.data.also} beside {self.data.source} is one of them twice.", where="data.also", fix=fix
            )
        dims = self.represent.matryoshka_dims
        if min(dims, default=1) < 1 or len(set(dims)) < len(dims):
            raise LBRError(f"must be numbers above 0, each once, not {dims}.", where="represent.matryoshka_dims")
        mini, batch = self.represent.mini_batch_size, self.represent.batch_size
        if mini is not None and mini > batch:
            raise LBRError(
                f"{mini} is larger than represent.batch_size ({batch}).",
                where="represent.mini_batch_size",
                fix="Choose a smaller one, or null to encode the batch whole.",
            )

    def _check_bottleneck(self) -> None:
        learn = self.learn
        generative = learn.enabled or self.represent.replay_weight > 0
        if generative and learn.bottleneck != "none" and not self.model.num_bottleneck_tokens:
            raise LBRError(
                f"is 0, but learn.bottleneck is {learn.bottleneck}, which needs bottleneck tokens.",
                where="model.num_bottleneck_tokens",
                fix="Set it to 1 or more, or learn.bottleneck to none, or switch off learn.enabled and the replay.",
            )
        if learn.rate_weight > 0 and learn.bottleneck != "embedding":
            raise LBRError(
                f'is {learn.rate_weight}, but only bottleneck="embedding" decodes from the variational z.',
                where="learn.rate_weight",
                fix="Set learn.bottleneck to embedding or learn.rate_weight to 0.",
            )
        if learn.bottleneck != "none":
            return
        for name in ("target_dropout", "bag_weight"):
            if (value := getattr(learn, name)) > 0:
                raise LBRError(
                    f"is {value}, but with learn.bottleneck none there is no bottleneck to make use of.",
                    where=f"learn.{name}",
                    fix="Set it to 0, or choose another learn.bottleneck.",
                )
        if not learn.context_weight and "reconstruct" in learn.pairs:
            raise LBRError(
                "is 0, but with learn.bottleneck none the text of a reconstruct pair is learnt as a context.",
                where="learn.context_weight",
                fix="Set it above 0 (1 is plain causal language modelling), or leave reconstruct out of learn.pairs.",
            )


def recipe_from(values: Namespace) -> Recipe:
    """Build a recipe from parsed values, as :func:`~lbr_st.recipe_arguments.add_recipe_arguments` yields them."""
    nested = values.as_dict()
    return Recipe(**{key: SECTIONS[key](**value) if key in SECTIONS else value for key, value in nested.items()})


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file; fields that it does not name keep their defaults.

    Args:
        path: The YAML file.

    Raises:
        LBRError: The file cannot be read or is no YAML, or a key is unknown, given twice, or has a wrong value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        refuse_aliases(text, path)
        values = yaml.safe_load(text)  # refuses tags that build Python objects
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise LBRError(f"cannot be read ({error.strerror}).", where=str(path), fix="Check the file's name.") from None
    except UnicodeDecodeError:
        raise LBRError("is no UTF-8 text.", where=str(path), fix="Save the recipe as UTF-8.") from None
    except RecursionError:
        fix = "Write one `key: value` a line, on two levels at most."
        raise LBRError("is no valid YAML: too many levels.", where=str(path), fix=fix) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        fix = "Write one `key: value` a line; put text with special signs between quotes."
        raise LBRError(f"is no valid YAML: {problem}.", where=f"{path}{line}", fix=fix) from None
    check_keys(root, path)
    try:
        # Not parse_string: jsonargparse's own reader takes a bare 0E0 for a number; PyYAML, which wrote it, does not.
        recipe = recipe_from(_parser().parse_object(values))
        recipe.validate()
    except ArgumentError as error:
        raise explain(error).within(str(path)) from None
    except LBRError as error:
        raise error.within(str(path)) from None
    return recipe


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every field of a recipe to a YAML file that :func:`load_recipe` reads back to an equal recipe.

    Args:
        recipe: The recipe.
        path: The file to write; one that is there is replaced.

    Raises:
        LBRError: The recipe is not valid, or the file cannot be written.
    """
    recipe.validate()
    path = Path(path)
    text = _parser().dump(_namespace(recipe), format="yaml", skip_unset=False)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


@cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_arguments(parser)
    return parser


def _namespace(recipe: Recipe) -> Namespace:
    return Namespace(recipe.flat())


def _check_text(key: str, value: str) -> None:
    if not value.strip() and key not in _MAY_BE_EMPTY:
        raise LBRError("is empty.", where=key, fix="Give it a value.")
    if key == "name" and not re.fullmatch(r"\w[\w.-]*", value):
        # It names files of scores and stands in the card's header.
        raise LBRError(
            f"{value!r} cannot name a model.", where=key, fix="Use letters, digits, '_', '.' and '-', no '.' in front."
        )
    if key in _FILES and set(value) & set("\n\t"):
        raise LBRError(f"{value!r} holds a line break or a tab.", where=key, fix="Remove it.")
    # A prompt may hold line breaks; YAML does not give back the rarer ones, nor control characters.
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in value if sign not in "\n\t"):
        raise LBRError(f"{value!r} holds a control character.", where=key, fix="Remove it.")


def _check_number(key: str, value: float) -> None:
    low, high = _AT_LEAST.get(key, -math.inf), _BELOW.get(key, math.inf)
    if not math.isfinite(value) or (key in _ABOVE_ZERO and value <= 0) or not low <= value < high:
        above = "above 0" if key in _ABOVE_ZERO else f"at least {low}"
        below = f" and below {high}" if key in _BELOW else ""
        raise LBRError(f"must be {above}{below}, not {value}.", where=key)
