"""Score a model on a retrieval set with BEIR's own search and evaluation, beside what MTEB finds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.harness import part_of, versions
from lbr_st.evaluation.mteb_task import import_extra, quiet_mteb, retrieval_task
from lbr_st.evaluation.result import DECIDES, TaskScore
from lbr_st.evaluation.systems import embedding_system
from lbr_st.precision import Precision, use_bfloat16

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from lbr_st.data.beir import RetrievalSet

CUTOFFS = [10, 100]
CHUNK = 10_000
"""Documents encoded and compared at once."""

SIMILARITIES = {"cosine": "cos_sim", "dot": "dot"}


def evaluate_beir(
    model: SentenceTransformer,
    data: RetrievalSet,
    *,
    name: str,
    revision: str | None = None,
    batch_size: int = 64,
    precision: Precision = "float32",
    show_progress_bar: bool = False,
    command: str = "",
) -> TaskScore:
    """Score a model with ``beir``: its exact search over the whole corpus, its judgement of the rankings.

    Queries go through ``encode_query`` and documents through ``encode_document``; ``beir``'s own ``SentenceBERT``
    calls ``encode`` for both. Nothing is read from or written to disk.

    Args:
        model: The model.
        data: Corpus, queries and judgements; :func:`lbr_st.data.read_beir` reads a BEIR folder.
        name: The name to report the scores under, ``org/model``.
        revision: Names this version of the model. Default: :func:`lbr_st.evaluation.model_digest`.
        batch_size: Texts encoded at once.
        precision: See :func:`lbr_st.evaluation.embedding_system`.
        show_progress_bar: Show a bar with the remaining time while encoding.
        command: The command line to note beside the scores.

    Returns:
        What :func:`lbr_st.evaluation.evaluate_retrieval` gives, with ``experiment["harness"] == "beir"``. ``score`` is
        BEIR's ``NDCG@10``, which it rounds to 5 decimals; the queries' scores are not rounded.

    Raises:
        LBRError: A bad name or revision, nothing to evaluate, a similarity that BEIR does not know, embeddings that
            are no numbers, or a package of the ``eval`` extra is missing.
    """
    started = time.perf_counter()
    system = embedding_system(model, name, revision=revision, precision=precision)
    if model.similarity_fn_name not in SIMILARITIES:
        raise LBRError(
            f"BEIR cannot compare embeddings by {model.similarity_fn_name!r}.",
            where=name,
            fix=f"Set model.similarity_fn_name to one of: {', '.join(SIMILARITIES)}; or evaluate with MTEB.",
        )
    dense = import_extra("beir.retrieval.search.dense")
    evaluation = import_extra("beir.retrieval.evaluation")
    with quiet_mteb():
        task = retrieval_task(data, domains=())  # the very queries and judgements that MTEB scores
        task.load_data()
    rows = task.dataset["default"]["test"]
    qrels = rows["relevant_docs"]
    encoder = _Encoder(model, bfloat16=use_bfloat16(precision, model.device), where=name)
    search = dense.DenseRetrievalExactSearch(
        encoder, batch_size=batch_size, corpus_chunk_size=CHUNK, show_progress_bar=show_progress_bar
    )
    retriever = evaluation.EvaluateRetrieval(
        search, k_values=CUTOFFS, score_function=SIMILARITIES[model.similarity_fn_name]
    )
    # BEIR reads len(corpus[i]["title"]), so the key must be there.
    corpus = {document: {"title": "", "text": text} for document, text in data.corpus.items()}
    results = retriever.retrieve(corpus, _two_or_more({query: data.queries[query] for query in qrels}))
    results = {query: results[query] for query in qrels}
    means = retriever.evaluate(qrels, results, CUTOFFS)  # takes the query's own document out of ``results``
    return replace(
        _described(data, command),
        model=system.name,
        revision=system.revision,
        digest=system.digest,
        score=float(means[0]["NDCG@10"]),
        parts=(part_of(rows, _query_scores(qrels, results), qrels, results, "test", "default"),),
        experiment={**system.experiment, "harness": "beir"},
        embed_dim=system.embed_dim,
        seconds=round(time.perf_counter() - started, 3),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _Encoder:
    """A model as BEIR's search calls it."""

    def __init__(self, model: SentenceTransformer, *, bfloat16: bool, where: str) -> None:
        self.model, self.bfloat16, self.where = model, bfloat16, where

    def encode_queries(self, queries: Sequence[str], **options: Any) -> Any:
        return self._encode(self.model.encode_query, list(queries), **options)

    def encode_corpus(self, corpus: Sequence[dict[str, str]], **options: Any) -> Any:
        texts = [f"{document['title']} {document['text']}".strip() for document in corpus]
        return self._encode(self.model.encode_document, texts, **options)

    def _encode(self, encode: Any, texts: list[str], **options: Any) -> Any:
        import torch

        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            embeddings = encode(texts, **options).float()
        if not bool(torch.isfinite(embeddings).all()):  # BEIR would rank such documents last and say nothing
            raise LBRError("an embedding is not a number.", where=self.where, fix="Check the model's weights.")
        return embeddings


def _two_or_more(queries: dict[str, str]) -> dict[str, str]:
    """Return the queries, a single one twice: BEIR's search looks at the second row of the scores."""
    if len(queries) > 1:
        return queries
    return {key: text for query, text in queries.items() for key in (query, f"{query} again")}


def _query_scores(qrels: Mapping[str, Mapping[str, int]], results: Mapping[str, Mapping[str, float]]) -> Any:
    """Return query id → measure → value, by the same program and measures that BEIR averages."""
    evaluator = import_extra("pytrec_eval").RelevanceEvaluator
    cuts = ",".join(map(str, CUTOFFS))
    return evaluator(qrels, {f"ndcg_cut.{cuts}", f"recall.{cuts}"}).evaluate(results)


def _described(data: RetrievalSet, command: str) -> TaskScore:
    return TaskScore(
        model="",
        revision="",
        digest="",
        task=data.name,
        task_type="Retrieval",
        metric=DECIDES,
        score=0.0,
        dataset_revision=data.revision,
        command=command,
        versions={**versions(), **{package: version(package) for package in ("beir", "pytrec_eval-terrier")}},
        description=data.description,
    )
