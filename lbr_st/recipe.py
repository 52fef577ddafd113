"""The recipe: one typed, serialisable description of a whole run, its YAML form, and its baselines.

The docstrings of the sections are also the command line's help. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from lbr_st.errors import LBRError
from lbr_st.files import LOCAL, UNTRAINED, published, write_whole
from lbr_st.recipe_arguments import (
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    check_value,
    did_you_mean,
    read_values,
)


@dataclass
class RunConfig:
    """The run as a whole.

    Args:
        name: Name of the released model.
        seed: Seed of every random choice.
        precision: Arithmetic for training; auto lets the device decide.
        max_hours: Most hours of training, in one process, on pairs that are made of documents: half for each stage,
            which takes fewer steps if need be; null sets no limit.
    """

    name: str = "lbr-model"
    seed: Seed = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_hours: PositiveFloat | None = 1.0


@dataclass
class ModelConfig:
    """The base model, its bottleneck and how much of it is trained.

    Args:
        base: Causal language model to start from, or embedder that pools its last token: the embedded smollm2-135m, a
            hub id or a local folder.
        num_bottleneck_tokens: Number k of bottleneck tokens appended to every text; 0 appends the end-of-text token.
        token_init: Start value of the new token rows: mean of the vocabulary, the end-of-text row, or random. An
            embedder's closing tokens are copied instead.
        projection_dim: Size of the embedding after a learned projection; null keeps the model's own size.
        max_seq_length: Longest text in tokens, bottleneck tokens included; longer texts are cut.
        query_prompt: Text put before every query, in training and when encoding; null takes that of an embedder, and
            "query: " for a language model.
        document_prompt: Text put before every document, likewise; null takes that of an embedder, or "document: ".
        lora: Train LoRA adapters and the new token rows; false trains every weight.
        lora_rank: Rank of the LoRA adapters.
        lora_alpha: Scale of the LoRA adapters; alpha divided by rank multiplies their output.
        lora_dropout: Dropout before the LoRA adapters while training.
        quantize: Keep the base in 4 bits while LoRA adapters are trained on it (QLoRA), in a fraction of the memory;
            needs a GPU and pip install "lbr-st[qlora]". The released model is in full precision.
    """

    base: str = "smollm2-135m"
    num_bottleneck_tokens: NonNegativeInt = 4
    token_init: Literal["mean", "eos", "random"] = "mean"
    projection_dim: PositiveInt | None = None
    max_seq_length: PositiveInt = 256
    query_prompt: str | None = None
    document_prompt: str | None = None
    lora: bool = True
    lora_rank: PositiveInt = 32
    lora_alpha: PositiveInt = 64
    lora_dropout: Fraction = 0.0
    quantize: Literal["4bit"] | None = None


@dataclass
class DataConfig:
    """Where the text and the query-document pairs come from.

    Args:
        source: Domain data: chebi, documents (a folder, or .txt, .md, .rst, .html, .pdf, .docx and tables without
            queries), a BEIR folder, a .jsonl, .csv, .tsv or .parquet file of pairs, or a hub dataset id.
        make_pairs: Kinds of pairs made of documents: heading (headings to a passage), crop (a sentence to the rest of
            its passage), terms (a passage's rarest words to it), defines (a term to what defines it), question (queries
            that a language model writes). null takes all, question only with a writer.
        writer: What writes questions: a local causal language model, or the address (http://...) of a server with
            OpenAI's interface.
        queries: Your own queries over the documents, to judge by: a .jsonl or .csv file with the column query, and file
            or quote for what answers it.
        text_column: Column that holds plain text.
        query_column: Column that holds the query of a pair.
        document_column: Column that holds the document of a pair.
        split: Split to train on.
        also: Domain tasks to train on next to the source: their pairs, texts and records. Only the source is evaluated.
        synonyms: Take a thing's synonyms as further queries for its document, where a domain task has synonyms.
        texts: A further source of plain text for the learn stage.
        pairs: Source of query-document pairs for the represent stage, when it is not the main source.
        min_score: Least score of a right pair, where a column of labels or scores has more values than 0 and 1.
        bad_rows: What to do with rows whose text is missing, empty or no text: stop with an error, or skip up to one in
            twenty.
        contamination: What to do with training rows that repeat, word for word or nearly, an evaluation query or a
            document judged for one: drop them, refuse to run, or only report them.
    """

    source: str = "chebi"
    make_pairs: list[Literal["heading", "crop", "terms", "defines", "question"]] | None = None
    writer: str | None = None
    queries: str | None = None
    text_column: str = "text"
    query_column: str = "query"
    document_column: str = "document"
    split: str = "train"
    also: list[str] = field(default_factory=list)
    synonyms: bool = False
    texts: str | None = None
    pairs: str | None = None
    min_score: FiniteFloat | None = None
    bad_rows: Literal["error", "skip"] = "error"
    contamination: Literal["drop", "refuse", "report"] = "drop"


@dataclass
class LearnConfig:
    """Stage 1, learn: generative training through the bottleneck.

    Args:
        enabled: Run this stage.
        pairs: How context-target pairs are made: natural (query to document), reverse (document to query), reconstruct
            (text to itself; with bottleneck none the text once), continue (first part of a text to the rest), records
            (name to what the domain's own text says of it; the open regime: it names what is asked for, too). null
            takes the last two but records for documents, else the first three.
        bottleneck: What the target sees of its context: the bottleneck's keys and values (attention), the pooled
            embedding only (embedding), or with none the whole context, which is plain causal language modelling.
        max_steps: Number of optimiser steps; 0 leaves the model as it is. null takes 200, or with documents as many as
            read each pair once.
        batch_size: Most pairs per step and process.
        batch_tokens: Most tokens per step and process, contexts and targets, to bound the memory; null sets no limit.
        packed: Run a step's pairs in one row without padding; false pads each to the longest, with equal results.
        learning_rate: Peak learning rate of the model's weights or adapters.
        token_learning_rate: Peak learning rate of the new token rows and of the embedding bottleneck's bridge.
        warmup_steps: Steps over which the learning rates rise from zero.
        context_weight: Weight of plain language modelling on the context; with bottleneck none, of a context token
            compared with a target token.
        rate_weight: Weight of the variational rate term; above 0 only with the embedding bottleneck.
        target_dropout: Share of target input tokens hidden from the decoder, so that it must use the bottleneck.
        bag_weight: Weight of a bag-of-words term, in which the embedding's state names the target's tokens by itself.
        distil_weight: Weight of a term that has predictions from the bottleneck follow a reader of the whole context.
        distil_reader: Who reads: the model as it stands (self), or without its adapters (base).
        max_target_tokens: Longest target in tokens; null sets no limit of its own.
        eval_steps: Steps between two measurements of the bottleneck gain, and between two checkpoints.
        num_eval_pairs: Held-out pairs on which the bottleneck gain is measured.
    """

    enabled: bool = True
    pairs: list[Literal["natural", "reverse", "reconstruct", "continue", "records"]] | None = None
    bottleneck: Literal["attention", "embedding", "none"] = "attention"
    max_steps: NonNegativeInt | None = None
    batch_size: PositiveInt = 32
    batch_tokens: PositiveInt | None = 4096
    packed: bool = True
    learning_rate: PositiveFloat = 1e-3
    token_learning_rate: PositiveFloat = 1e-2
    warmup_steps: NonNegativeInt = 10
    context_weight: NonNegativeFloat = 0.1
    rate_weight: NonNegativeFloat = 0.0
    target_dropout: Fraction = 0.0
    bag_weight: NonNegativeFloat = 0.0
    distil_weight: NonNegativeFloat = 0.0
    distil_reader: Literal["self", "base"] = "self"
    max_target_tokens: PositiveInt | None = 32
    eval_steps: PositiveInt = 50
    num_eval_pairs: PositiveInt = 64


@dataclass
class RepresentConfig:
    """Stage 2, represent: contrastive training of the compressed representation.

    Args:
        enabled: Run this stage.
        max_steps: Number of optimiser steps; 0 leaves the model as it is. null as for the learn stage.
        batch_size: Pairs per step and process; the other documents of a batch are a query's negatives.
        mini_batch_tokens: Encode a larger batch in pieces of this many tokens, to bound the memory with equal results;
            null encodes it whole.
        gather_negatives: With several processes, take the documents of all as negatives.
        learning_rate: Peak learning rate of the model's weights or adapters.
        token_learning_rate: Peak learning rate of the new token rows.
        warmup_steps: Steps over which the learning rates rise from zero.
        temperature: Divisor of the cosine similarities in the contrastive loss, ours and a teacher's; smaller is
            sharper.
        num_hard_negatives: Hard negatives a query, mined by the model as it is before stage 2 and next to those that a
            pair has; a pair with fewer near misses and none of its own is left out. 0 mines none.
        similar_group_size: Number of pairs with similar words that enter a batch together, so that its negatives are
            hard; a step costs no more. 1 draws each pair on its own.
        matryoshka_dims: Smaller embedding sizes to train too (Matryoshka); an empty list trains the whole size only.
        eval_steps: Steps between two checkpoints, and between two evaluations where an evaluator is given.
        stop: Stop after so many evaluations without a better nDCG@10 on held-out queries, and keep the best checkpoint;
            0 takes all steps and keeps the last.
        teacher: A model whose similarities are learnt, too: the folder or hub id of a Sentence Transformers model or
            cross-encoder, or the embedded all-MiniLM-L6-v2. It is asked once about each text, or a cross-encoder about
            each query's own documents, which needs negatives. null for none.
        teacher_weight: Share of the loss that compares with the teacher; the rest is the contrastive loss.
    """

    enabled: bool = True
    max_steps: NonNegativeInt | None = None
    batch_size: PositiveInt = 64
    mini_batch_tokens: PositiveInt | None = 4096
    gather_negatives: bool = True
    learning_rate: PositiveFloat = 2e-4
    token_learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 10
    temperature: PositiveFloat = 0.05
    num_hard_negatives: NonNegativeInt = 0
    similar_group_size: PositiveInt = 1
    matryoshka_dims: list[PositiveInt] = field(default_factory=list)
    eval_steps: PositiveInt = 100
    stop: NonNegativeInt = 0
    teacher: str | None = None
    teacher_weight: Fraction = 0.9


@dataclass
class ReleaseConfig:
    """What of the trained model is released.

    Args:
        scale: Share of what training changed that is kept, from 0 (the base) to 1 (all). Below 1 a base that was an
            embedder keeps more of what it knew; needs LoRA and no projection.
    """

    scale: Share = 1.0


@dataclass
class EvaluateConfig:
    """Retrieval evaluation on the held-out queries.

    Args:
        enabled: Evaluate at the end of a run.
        split: Which queries: test, or dev while settings are chosen.
        num_queries: Number of queries to evaluate; null takes all.
        num_documents: Number of documents to search; null takes all.
        batch_size: Texts encoded at once.
        precision: Arithmetic for encoding; auto takes bfloat16 where it is faster and the embeddings stay the same (a
            cosine of 0.995 or more). Scores in bfloat16 are filed apart from those in float32.
        beside: A model to score for comparison: a folder, a hub id, or untrained:smollm2-135m for that base as it is,
            with mean pooling; null for none.
    """

    enabled: bool = True
    split: Literal["test", "dev"] = "test"
    num_queries: PositiveInt | None = None
    num_documents: PositiveInt | None = None
    batch_size: PositiveInt = 32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    beside: str | None = None


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
    made.name = f"{recipe.name}-{name}"
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
        name=f"{full.name}-quick",
        seed=full.seed,
        model=replace(full.model, max_seq_length=max_seq_length, lora_rank=8, lora_alpha=16),
        data=replace(full.data, also=[], synonyms=False),
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
            max_steps=16, batch_size=40, learning_rate=1e-3, token_learning_rate=3e-3, warmup_steps=2
        ),
        # A fixed slice of the test queries, so that it ends while you wait; the table names it.
        evaluate=EvaluateConfig(num_queries=300, num_documents=3000, batch_size=32),
    )


DATA_PLACES = ("data.source", "data.texts", "data.pairs", "data.queries", "data.writer")
PLACES = ("model.base", *DATA_PLACES, "represent.teacher", "evaluate.beside")


def recipe_without_places(recipe: Recipe, known: Collection[str] = ()) -> Recipe:
    """Return the recipe as a release states it: with :func:`lbr_st.files.published` in place of each name."""
    made = deepcopy(recipe)
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
