"""Evaluation through MTEB with per-query records; mteb, torch, scipy and bm25s are imported on first use."""

from __future__ import annotations

from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.run import evaluate_beir, evaluate_bm25, evaluate_retrieval, evaluate_task
from lbr_st.evaluation.scores import (
    Part,
    TaskScore,
    find_system,
    format_table,
    format_tasks,
    latest,
    read_record,
    read_records,
    write_record,
    write_results,
)
from lbr_st.evaluation.systems import System, bm25_system, embedding_system, model_digest, truncated

__all__ = [
    "Part",
    "System",
    "TaskScore",
    "bm25_system",
    "embedding_system",
    "evaluate_beir",
    "evaluate_bm25",
    "evaluate_retrieval",
    "evaluate_task",
    "find_system",
    "format_table",
    "format_tasks",
    "latest",
    "model_digest",
    "read_record",
    "read_records",
    "retrieval_task",
    "truncated",
    "write_record",
    "write_results",
]
