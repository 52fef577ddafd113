"""The sections of a recipe: plain dataclasses whose docstrings are also the command line's help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class RunConfig:
    """The run as a whole.

    Args:
        name: Name of the released model.
        seed: Seed of every random choice.
        precision: Arithmetic for training; auto lets the device decide.
    """

    name: str = "lbr-model"
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass
class ModelConfig:
    """The base model, its bottleneck and how much of it is trained.

    Args:
        base: Causal language model to start from: the embedded smollm2-135m, a hub id or a local folder.
        num_bottleneck_tokens: Number k of bottleneck tokens appended to every text; 0 for no bottleneck, with the
            end-of-text token in their place.
        token_init: Start value of the new token rows: mean of the vocabulary, the end-of-text row, or random.
        projection_dim: Size of the embedding after a learned projection; null keeps the model's own size.
        max_seq_length: Longest text in tokens, bottleneck tokens included; longer texts are cut.
        query_prompt: Text put before every query, in training and when encoding.
        document_prompt: Text put before every document, in training and when encoding.
        lora: Train LoRA adapters and the new token rows; false trains every weight.
        lora_rank: Rank of the LoRA adapters.
        lora_alpha: Scale of the LoRA adapters; alpha divided by rank multiplies their output.
        lora_dropout: Dropout before the LoRA adapters while training.
        quantize: Keep the base's linear layers in 4 bits while LoRA adapters are trained on them (QLoRA), in a fraction
            of the memory; needs a GPU and pip install "lbr-st[qlora]". The released model is in full precision.
    """

    base: str = "smollm2-135m"
    num_bottleneck_tokens: int = 4
    token_init: Literal["mean", "eos", "random"] = "mean"
    projection_dim: int | None = None
    max_seq_length: int = 256
    query_prompt: str = "query: "
    document_prompt: str = "document: "
    lora: bool = True
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_dropout: float = 0.0
    quantize: Literal["4bit"] | None = None


@dataclass
class DataConfig:
    """Where the text and the query-document pairs come from.

    Args:
        source: Domain data: chebi, a BEIR folder, a .jsonl, .csv or .parquet file, or a hub dataset id.
        text_column: Column that holds plain text.
        query_column: Column that holds the query of a pair.
        document_column: Column that holds the document of a pair.
        split: Split to train on.
        also: Domain tasks to train on beside the source: their pairs, texts and records. What is evaluated is the
            source's; no row may repeat the queries of any of them.
        synonyms: Take a thing's synonyms as further queries for its document, where a domain task has synonyms.
        texts: A further source of plain text for the learn stage.
        pairs: Source of query-document pairs for the represent stage, when it is not the main source.
        contamination: What to do with training rows that repeat an evaluation query or a document judged for one, word
            for word or nearly: drop them, refuse to run, or only report them.
    """

    source: str = "chebi"
    text_column: str = "text"
    query_column: str = "query"
    document_column: str = "document"
    split: str = "train"
    also: list[str] = field(default_factory=list)
    synonyms: bool = False
    texts: str | None = None
    pairs: str | None = None
    contamination: Literal["drop", "refuse", "report"] = "drop"


@dataclass
class LearnConfig:
    """Stage 1, learn: generative training through the bottleneck.

    Args:
        enabled: Run this stage.
        pairs: How context-target pairs are made: natural (query to document), reverse (document to query), reconstruct
            (text to itself; with bottleneck none the text once), continue (first part of a text to the rest), records
            (name to what the domain's own text says of it; the open regime: it names what is asked for, too).
        bottleneck: What the target sees of its context: the bottleneck's keys and values (attention), the pooled
            embedding only (embedding), or with none the whole context, which is plain causal language modelling.
        max_steps: Number of optimiser steps; 0 leaves the model as it is.
        batch_size: Most pairs per step and process.
        batch_tokens: Most tokens per step and process, contexts and targets together, so that long texts do not decide
            the memory; null for no such limit.
        packed: Run a step's pairs in one row without padding; false pads each to the longest, with equal results.
        nll_kernel: How the vocabulary's loss is computed; chunked runs anywhere, liger needs a GPU and liger-kernel.
        learning_rate: Peak learning rate of the model's weights or adapters.
        token_learning_rate: Peak learning rate of the new token rows and of the embedding bottleneck's bridge;
            without bottleneck tokens there are none.
        warmup_steps: Steps over which the learning rates rise from zero.
        context_weight: Weight of plain language modelling on the context; with bottleneck none, of a context token
            beside a target token.
        rate_weight: Weight of the variational rate term; above 0 only with the embedding bottleneck.
        target_dropout: Share of target input tokens hidden from the decoder, so that it must use the bottleneck.
        bag_weight: Weight of a bag-of-words term, in which the embedding's state names the target's tokens by itself.
        max_target_tokens: Longest target in tokens; null sets no limit of its own.
        eval_steps: Steps between two measurements of the bottleneck gain, and between two checkpoints.
        num_eval_pairs: Held-out pairs on which the bottleneck gain is measured.
    """

    enabled: bool = True
    pairs: list[Literal["natural", "reverse", "reconstruct", "continue", "records"]] = field(
        default_factory=lambda: ["natural", "reverse", "reconstruct"]
    )
    bottleneck: Literal["attention", "embedding", "none"] = "attention"
    max_steps: int = 200
    batch_size: int = 32
    batch_tokens: int | None = 4096
    packed: bool = True
    nll_kernel: Literal["chunked", "liger"] = "chunked"
    learning_rate: float = 1e-3
    token_learning_rate: float = 1e-2
    warmup_steps: int = 10
    context_weight: float = 0.1
    rate_weight: float = 0.0
    target_dropout: float = 0.0
    bag_weight: float = 0.0
    max_target_tokens: int | None = 32
    eval_steps: int = 50
    num_eval_pairs: int = 64


@dataclass
class RepresentConfig:
    """Stage 2, represent: contrastive training of the compressed representation.

    Args:
        enabled: Run this stage.
        max_steps: Number of optimiser steps; 0 leaves the model as it is.
        batch_size: Pairs per step and process; the other documents of a batch are a query's negatives.
        batch_tokens: Most tokens per step, all texts together; null for no such limit. With fewer pairs a step has
            fewer negatives: mini_batch_tokens bounds the memory and keeps them.
        mini_batch_tokens: A batch of more tokens is encoded in pieces of that many with the cached loss, with equal
            results, to bound the memory; null: whole.
        mini_batch_size: Encode every batch in pieces of this many texts instead; null: by tokens.
        gather_negatives: Where several processes train, take the documents of all as negatives.
        learning_rate: Peak learning rate of the model's weights or adapters.
        token_learning_rate: Peak learning rate of the new token rows.
        warmup_steps: Steps over which the learning rates rise from zero.
        temperature: Divisor of the cosine similarities in the contrastive loss; smaller is sharper.
        num_hard_negatives: Hard negatives a query, mined by the model as it is before stage 2; a pair with fewer near
            misses is left out. 0 uses in-batch negatives only.
        similar_group_size: Pairs that read alike and are put in a batch together, so that in-batch negatives are hard;
            no model is asked, and a step costs no more. 1 draws each pair on its own. Replayed pairs are grouped, too.
        matryoshka_dims: Smaller embedding sizes to train beside the whole one, so that its first numbers alone serve as
            an embedding (Matryoshka); none for the whole only.
        replay_weight: Weight of the generative loss replayed beside the contrastive one; 0 turns it off.
        eval_steps: Steps between two checkpoints, and between two evaluations where an evaluator is given.
    """

    enabled: bool = True
    max_steps: int = 200
    batch_size: int = 64
    batch_tokens: int | None = None
    mini_batch_tokens: int | None = 4096
    mini_batch_size: int | None = None
    gather_negatives: bool = True
    learning_rate: float = 2e-4
    token_learning_rate: float = 1e-3
    warmup_steps: int = 10
    temperature: float = 0.05
    num_hard_negatives: int = 0
    similar_group_size: int = 1
    matryoshka_dims: list[int] = field(default_factory=list)
    replay_weight: float = 0.0
    eval_steps: int = 100


@dataclass
class EvaluateConfig:
    """Retrieval evaluation on the held-out queries.

    Args:
        enabled: Evaluate at the end of a run.
        split: Which queries: those of test, or while settings are chosen those of dev.
        num_queries: Number of queries to evaluate; null takes all.
        num_documents: Number of documents to search; null takes all.
        batch_size: Texts encoded at once.
        precision: Arithmetic for encoding; bfloat16 scores are filed apart from float32 ones.
        beside: A general embedding model to score beside this one, a folder or a hub id; null for none.
    """

    enabled: bool = True
    split: Literal["test", "dev"] = "test"
    num_queries: int | None = None
    num_documents: int | None = None
    batch_size: int = 64
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    beside: str | None = None


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "learn": LearnConfig,
    "represent": RepresentConfig,
    "evaluate": EvaluateConfig,
}
