"""Tokenises a dataset once, in parallel, to memory-mapped Arrow files.

They are found again by what they were made of (texts, tokenizer, prompts, lengths), also on another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from lbr_st.compute import world_size
from lbr_st.data.lines import processes
from lbr_st.data.texts import digest, digests
from lbr_st.files import alone, new_folder, notice
from lbr_st.recipe import LearnConfig, RepresentConfig

FORMAT = 3
"""Raise it to have all token files made again."""
NUM_TOKENS = "num_tokens"
"""The column with a row's number of tokens, all its texts together."""
DIGEST = "_digest"
"""Appended to a text column's name for the column with digests of its texts, without prompts: uint64."""
EMPTY = digest("")
"""Digest of the empty text, which stands for a negative that a row does not have."""


@dataclass(frozen=True)
class Column:
    """How a column is tokenised: the prompt before every text, and the most tokens (None: the tokenizer's maximum)."""

    prompt: str = ""
    max_length: int | None = None


def reachable(
    pairs: Dataset, config: LearnConfig | RepresentConfig, seed: int, overrides: Mapping[str, Any] | None = None
) -> Dataset:
    """Return as many pairs as a stage's steps can read, twice over, drawn by the seed; all of them if there are fewer.

    Twice, because batches put off rows whose texts they have already. ``overrides`` are training arguments.
    """
    given = overrides or {}
    steps, accumulated = given.get("max_steps", config.max_steps), given.get("gradient_accumulation_steps", 1)
    size = given.get("per_device_train_batch_size", config.batch_size)
    devices = max(world_size(), torch.cuda.device_count())  # one process takes all GPUs if it is launched alone
    count = 2 * steps * size * accumulated * devices
    if not 0 < count < len(pairs):  # below 0, epochs are counted instead of steps
        return pairs
    return pairs.select(np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count]))


def tokenized(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    columns: Mapping[str, Column],
    *,
    cache_dir: Path | str | None = None,
) -> Dataset:
    """Return a dataset's texts as the token ids that the model's own ``preprocess`` gives, special tokens included.

    Args:
        dataset: Has a column of texts for each of ``columns``.
        tokenizer: The model's.
        columns: Which columns, in which order, and how.
        cache_dir: Where the token files are kept; None keeps them in memory.

    Returns:
        The same rows with, for each column, its ids under its own name (lists of int32) and ``<name>_digest``
        (uint64, of the text without the prompt), and ``num_tokens`` (int32, of the whole row).
    """
    dataset = dataset.select_columns(list(columns))
    options = {name: asdict(column) for name, column in columns.items()}
    run = partial(
        dataset.map,
        partial(_tokenize, tokenizer=tokenizer, columns=options),
        batched=True,
        batch_size=1000,
        remove_columns=dataset.column_names,
        features=_features(columns),
        desc="Tokenising",
    )
    if cache_dir is None:
        return run(keep_in_memory=True)
    key = _key(dataset, tokenizer, options)
    folder = Path(cache_dir) / f"tokens-{key[:16]}"
    if (kept := _kept(folder)) is not None:
        return kept
    with alone(folder):
        if (kept := _kept(folder)) is not None:  # made by another process of the same run
            return kept
        if processes(dataset):  # it is large
            notice(f"Tokenising: {len(dataset):,} rows ...")
        with new_folder(folder, overwrite=True) as aside:
            run(
                cache_file_name=str(aside / "tokens.arrow"),
                new_fingerprint=key[:32],  # datasets appends to it and allows 64 characters
                load_from_cache_file=False,
                num_proc=processes(dataset),
            )
    return _read(folder)


def _tokenize(
    batch: dict[str, list[str]], *, tokenizer: PreTrainedTokenizerFast, columns: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    totals = [0] * len(next(iter(batch.values())))
    for name, column in columns.items():
        texts = batch[name]
        full = [column["prompt"] + text for text in texts] if column["prompt"] else texts
        ids = tokenizer(full, truncation=True, max_length=column["max_length"])["input_ids"]
        out[name] = ids
        out[name + DIGEST] = digests(texts)
        totals = [total + len(one) for total, one in zip(totals, ids, strict=True)]
    out[NUM_TOKENS] = totals
    return out


def _features(columns: Mapping[str, Column]) -> Features:
    features: dict[str, Any] = {}
    for name in columns:
        features |= {name: List(Value("int32")), name + DIGEST: Value("uint64")}
    return Features(features | {NUM_TOKENS: Value("int32")})


def _key(dataset: Dataset, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]) -> str:
    """Return a digest of everything that the ids depend on."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation"):  # left behind by whichever call came last
        backend.pop(state, None)
    text_only = tokenizer.split_special_tokens  # not in the backend's own form
    made_of = [FORMAT, backend, text_only, tokenizer.model_max_length, options, len(dataset)]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for batch in dataset.with_format("arrow").iter(batch_size=10_000):
        for column in batch.columns:
            texts = column.to_pylist()
            key.update(f"{[len(text) for text in texts]}".encode())
            key.update("".join(texts).encode("utf-8", "surrogatepass"))
    return key.hexdigest()


def _kept(folder: Path) -> Dataset | None:
    try:
        return _read(folder)
    except (OSError, ValueError):  # none, or cut off: pyarrow's own errors are among these
        return None


def _read(folder: Path) -> Dataset:
    return concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(folder.glob("*.arrow"))])


@dataclass
class TokenCollator(SentenceTransformerDataCollator):
    """Pads batches of token rows on the right: the same batches that Sentence Transformers' collator makes of texts."""

    pad_token_id: int = 0
    with_digests: bool = False  # for a loss with a teacher

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return ``<column>_input_ids`` and ``<column>_attention_mask``, int64 of shape (batch, longest).

        With digests, ``label`` has those of the texts, int64 of shape (batch, columns).
        """
        batch: dict[str, Any] = {}
        told: list[Tensor] = []
        for name in (name for name, value in features[0].items() if isinstance(value, list)):
            if name.startswith("negative_") and features[0][name + DIGEST] == EMPTY:
                continue  # no other row of the batch has negatives either
            rows = [torch.tensor(row[name], dtype=torch.long) for row in features]
            batch[f"{name}_input_ids"] = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
            batch[f"{name}_attention_mask"] = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            if self.with_digests:
                told.append(as_labels([row[name + DIGEST] for row in features]))
        return {**batch, "label": torch.stack(told, dim=1)} if told else batch


def as_labels(digests: Sequence[Any]) -> Tensor:
    """Return digests as int64 with the same bits, since PyTorch does little with uint64."""
    return torch.from_numpy(np.array(digests, dtype=np.uint64).view(np.int64))
