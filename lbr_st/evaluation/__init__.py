"""Retrieval evaluation through MTEB, a BM25 baseline, and tables; mteb, torch and bm25s are imported on first use."""

from __future__ import annotations

from lbr_st.evaluation.bm25 import evaluate_bm25
from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.result import RetrievalResult
from lbr_st.evaluation.retrieval import evaluate_retrieval, model_digest
from lbr_st.evaluation.table import format_table, write_results

__all__ = [
    "RetrievalResult",
    "evaluate_bm25",
    "evaluate_retrieval",
    "format_table",
    "model_digest",
    "retrieval_task",
    "write_results",
]
