"""The sections of a recipe: every value that a run can be given, its type, its default and its help.

A docstring here is also the command line's help. What values must not go together is in ``recipe.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lbr_st.recipe_arguments import (
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
)


@dataclass
class RunConfig:
    """The run as a whole.

    Args:
        name: Name of the released model; null takes that of the output folder.
        seed: Seed of every random choice.
        precision: Arithmetic for training; auto lets the device decide.
        max_hours: Most hours of training, in one process, on pairs that are made of documents: half for each stage,
            which takes fewer steps if need be; null sets no limit.
        report_to: Where losses and measurements are reported, too, if its package is installed: tensorboard (into the
            work folder), wandb, mlflow or trackio.
    """

    name: str | None = None
    seed: Seed = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_hours: PositiveFloat | None = 1.0
    report_to: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = "none"


@dataclass
class ModelConfig:
    """The base model, its bottleneck and how much of it is trained.

    Args:
        base: Causal language model to start from, or embedder that pools its last token: smollm2-135m or
            gemma3-270m from the package registry, a hub id or a local folder.
        accept_licence: Accept the base's licence, where it is not an open one. Google's Gemma terms
            (https://ai.google.dev/gemma/terms) cover gemma3-270m and what is made of it.
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
    accept_licence: bool = False
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
        source: Domain data, which has no default: documents (a folder, or .txt, .md, .rst, .html, .pdf, .docx and
            tables without queries), a BEIR folder, a .jsonl, .csv, .tsv or .parquet file of pairs, a hub dataset id, or
            a domain task such as chebi.
        make_pairs: Kinds of pairs made of documents: heading (headings to a passage), crop (a sentence to the rest of
            its passage), terms (a passage's rarest words to it), defines (a term to what defines it), question (queries
            that a language model writes). null takes all, question only with a writer. For other sources, naming kinds
            makes pairs of their plain texts, too.
        writer: What writes questions: a local causal language model, or the address (http://...) of a server with
            OpenAI's interface.
        queries: Your own queries over the documents, to judge by: a .jsonl or .csv file with the column query, and file
            or quote for what answers it.
        text_column: Column that holds plain text.
        query_column: Column that holds the query of a pair.
        document_column: Column that holds the document of a pair.
        split: Split to train on.
        also: Domain tasks to train on next to the source: their pairs, texts and records. Only the source is evaluated.
        archives: Public archives to train on next to the source, as docs/DATA.md names them: their pairs and texts.
        synonyms: Take a thing's synonyms as further queries for its document, where a domain task has synonyms.
        texts: A further source of plain text for the learn stage.
        pairs: Source of query-document pairs for the represent stage, when it is not the main source.
        min_score: Least score of a right pair, where a column of labels or scores has more values than 0 and 1.
        bad_rows: What to do with rows whose text is missing, empty or no text: stop with an error, or skip up to one in
            twenty.
        contamination: What to do with training rows that repeat, word for word or nearly, an evaluation query or a
            document judged for one: drop them, refuse to run, or only report them.
    """

    source: str = ""
    make_pairs: list[Literal["heading", "crop", "terms", "defines", "question"]] | None = None
    writer: str | None = None
    queries: str | None = None
    text_column: str = "text"
    query_column: str = "query"
    document_column: str = "document"
    split: str = "train"
    also: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
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
        teacher_weight: Share of the loss that compares with the teacher, up to 1; the rest is the contrastive loss.
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
    teacher_weight: Share = 0.9


@dataclass
class ReleaseConfig:
    """What of the trained model is released, and what its card says.

    Args:
        scale: Share of what training changed that is kept, from 0 (the base) to 1 (all). Below 1 a base that was an
            embedder keeps more of what it knew; needs LoRA and no projection.
        license: Licence of the released model as the hub spells it, such as apache-2.0. It is yours to choose; null
            states none.
        examples: Show a pair of the training data in the card's usage example; the pairs of a domain task are public
            and shown anyway.
    """

    scale: Share = 1.0
    license: str | None = None
    examples: bool = False


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
        beside: A model to score for comparison: a folder, a hub id, the embedded all-minilm-l6-v2, or
            untrained:smollm2-135m for that base as it is, with mean pooling; null for none.
    """

    enabled: bool = True
    split: Literal["test", "dev"] = "test"
    num_queries: PositiveInt | None = None
    num_documents: PositiveInt | None = None
    batch_size: PositiveInt = 32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    beside: str | None = None


MATTER_MOST: tuple[str, ...] = ("max_hours", "data.source", "data.queries", "data.texts", "model.base")
MATTER_MOST += ("model.max_seq_length", "learn.max_steps", "learn.learning_rate", "represent.max_steps")
MATTER_MOST += ("represent.batch_size", "represent.learning_rate", "evaluate.beside")
"""The dozen settings that `lbr-st train --help` shows and `lbr-st init` writes down."""
