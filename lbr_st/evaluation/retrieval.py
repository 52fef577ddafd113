"""Score a model, or BM25, on a retrieval set in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbr_st.evaluation.harness import evaluate_task
from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.result import TaskScore
from lbr_st.evaluation.systems import bm25_system, embedding_system
from lbr_st.load import load_stock
from lbr_st.precision import Precision

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from lbr_st.data.beir import RetrievalSet


def evaluate_retrieval(
    model: SentenceTransformer | str,
    data: RetrievalSet,
    *,
    name: str,
    output_folder: Path | str,
    revision: str | None = None,
    split: str = "test",
    domains: Sequence[str] = (),
    batch_size: int = 64,
    precision: Precision = "float32",
    show_progress_bar: bool = False,
    command: str = "",
) -> TaskScore:
    """Evaluate a model with ``mteb.evaluate``, or read back what an earlier call with the same model found.

    Queries go through ``encode_query`` and documents through ``encode_document``.

    Args:
        model: A loaded model, or the folder or hub id of one.
        data: Corpus, queries and judgements.
        name: The name to file the scores under, ``org/model``.
        output_folder: Where the scores go; see :func:`lbr_st.evaluation.evaluate_task`.
        revision: Names this version of the model. Default: :func:`lbr_st.evaluation.model_digest`.
        split: The name of the split, for MTEB's files.
        domains: MTEB's names for the field, such as ``"Chemistry"``.
        batch_size: Texts encoded at once.
        precision: See :func:`lbr_st.evaluation.embedding_system`.
        show_progress_bar: Show a bar with the remaining time while encoding.
        command: The command line to note beside the scores.

    Returns:
        The mean scores and those of each query.

    Raises:
        LBRError: A bad name, revision or precision, nothing to evaluate, an unwritable folder, or mteb is missing.
    """
    task = retrieval_task(data, split, domains)
    if isinstance(model, str):
        model = load_stock(model)
    system = embedding_system(model, name, revision=revision, precision=precision, show_progress_bar=show_progress_bar)
    return evaluate_task(
        system,
        task,
        output_folder=output_folder,
        batch_size=batch_size,
        command=command,
        name=data.name,
        description=data.description,
    )


def evaluate_bm25(data: RetrievalSet, output_folder: Path | str | None = None, command: str = "") -> TaskScore:
    """Score BM25 on a retrieval set with the same judgements, measure and harness as :func:`evaluate_retrieval`.

    Args:
        data: Corpus, queries and judgements.
        output_folder: Where the scores go; None keeps no files.
        command: The command line to note beside the scores.

    Returns:
        The scores, under the name ``baseline/bm25``; see :func:`lbr_st.evaluation.bm25_system`.

    Raises:
        LBRError: There is nothing to evaluate, or a package of the ``eval`` extra is missing.
    """
    if output_folder is None:
        with tempfile.TemporaryDirectory() as folder:
            return evaluate_bm25(data, folder, command)
    return evaluate_task(
        bm25_system(),
        retrieval_task(data),
        output_folder=output_folder,
        command=command,
        name=data.name,
        description=data.description,
    )
