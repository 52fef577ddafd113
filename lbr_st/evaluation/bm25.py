"""The BM25 baseline: what word matching alone finds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lbr_st.evaluation.mteb_task import import_extra, judged_queries
from lbr_st.evaluation.result import RetrievalResult

if TYPE_CHECKING:
    from lbr_st.data.retrieval import RetrievalSet

K1, B, DEPTH = 1.2, 0.75, 100


def evaluate_bm25(data: RetrievalSet) -> RetrievalResult:
    """Score BM25 on a retrieval set with the same judgements and measure as :func:`evaluate_retrieval`.

    Lucene's BM25 (k1 = 1.2, b = 0.75) over lower-cased words of two letters or more, without English stop words,
    stemmed by Porter2. A document that shares no word with the query is not a hit, and one whose id equals the
    query's id is dropped.

    Args:
        data: Corpus, queries and judgements.

    Returns:
        The scores, under the name ``baseline/bm25``.

    Raises:
        LBRError: There is nothing to evaluate, or a package of the ``eval`` extra is missing.
    """
    queries = judged_queries(data)
    bm25s, pytrec_eval = import_extra("bm25s"), import_extra("pytrec_eval")
    stemmer = import_extra("Stemmer").Stemmer("english")  # Snowball's name for Porter2
    started = time.perf_counter()
    how = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
    retriever = bm25s.BM25(k1=K1, b=B, method="lucene")
    retriever.index(bm25s.tokenize(list(data.corpus.values()), **how), show_progress=False)
    document_ids = list(data.corpus)
    rows, scores = retriever.retrieve(
        bm25s.tokenize(list(queries.values()), **how),
        k=min(DEPTH + 1, len(document_ids)),  # one more: the query's own document may be among them
        show_progress=False,
    )
    run = {
        query_id: {
            document_ids[row]: score
            for row, score in zip(row_list, score_list, strict=True)
            if score > 0 and document_ids[row] != query_id
        }
        for query_id, row_list, score_list in zip(queries, rows.tolist(), scores.tolist(), strict=True)
    }
    qrels = {query_id: data.qrels[query_id] for query_id in queries}
    judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10,100"}).evaluate(run)

    def of_each(measure: str) -> dict[str, float]:
        # A query without any hit scores 0; leaving it out would raise the mean.
        return {query_id: float(judged.get(query_id, {}).get(measure, 0.0)) for query_id in queries}

    per_query = of_each("ndcg_cut_10")
    return RetrievalResult(
        model="baseline/bm25",
        revision=f"bm25s-{bm25s.__version__}",
        task=data.name,
        dataset_revision=data.revision,
        ndcg_at_10=sum(per_query.values()) / len(queries),
        recall_at_10=sum(of_each("recall_10").values()) / len(queries),
        recall_at_100=sum(of_each("recall_100").values()) / len(queries),
        per_query=per_query,
        num_queries=len(queries),
        num_documents=len(document_ids),
        seconds=round(time.perf_counter() - started, 3),
        description=data.description,
    )
