"""Run a system on a task through MTEB or BEIR, keep what each query scored, and resume where it stopped."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lbr_st.errors import LBRError
from lbr_st.evaluation.mteb_task import is_retrieval, quiet_mteb, retrieval_task
from lbr_st.evaluation.scores import RECORDS, Part, TaskScore, mteb_folder, read_record, write_record
from lbr_st.evaluation.systems import System, bm25_system, embedding_system
from lbr_st.files import import_extra, installed_versions
from lbr_st.model.load import load_stock

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask, AbsTaskRetrieval
    from sentence_transformers import SentenceTransformer

    from lbr_st.data.beir import RetrievalSet

CHUNK = 10_000
"""Documents that BEIR encodes and compares at once."""

SIMILARITIES = {"cosine": "cos_sim", "dot": "dot"}
"""Sentence Transformers' names of similarities → BEIR's."""


def evaluate_retrieval(
    model: SentenceTransformer | str,
    data: RetrievalSet,
    *,
    name: str,
    output_folder: Path | str,
    batch_size: int = 64,
    command: str = "",
    **options: Any,
) -> TaskScore:
    """Evaluate a model, or the folder or hub id of one, on a retrieval set by :func:`evaluate_task`.

    Queries go through ``encode_query`` and documents through ``encode_document``. ``name``, as ``org/model``, is what
    the scores are filed under. It and ``options`` (revision, precision) are for
    :func:`~lbr_st.evaluation.systems.embedding_system`.

    Raises:
        LBRError: A bad name or precision, nothing to evaluate, or mteb is missing.
    """
    task = retrieval_task(data)
    system = embedding_system(load_stock(model) if isinstance(model, str) else model, name, **options)
    return evaluate_task(
        system, task, output_folder=output_folder, batch_size=batch_size, command=command, name=data.name
    )


def evaluate_bm25(data: RetrievalSet, output_folder: Path | str | None = None, command: str = "") -> TaskScore:
    """Score :func:`~lbr_st.evaluation.systems.bm25_system` on a set just as :func:`evaluate_retrieval` does a model.

    Without ``output_folder`` no files are kept.

    Raises:
        LBRError: There is nothing to evaluate, or a package of the ``eval`` extra is missing.
    """
    task = retrieval_task(data)
    with tempfile.TemporaryDirectory() as scratch:
        where = output_folder or scratch
        return evaluate_task(bm25_system(), task, output_folder=where, command=command, name=data.name)


def evaluate_task(
    system: System,
    task: AbsTask,
    *,
    output_folder: Path | str,
    batch_size: int = 64,
    command: str = "",
    name: str = "",
) -> TaskScore:
    """Evaluate a system on one MTEB task, or read back what an earlier run with the same system and data found.

    Files below ``output_folder``: ``results/<org__model>/<revision>/<task>.json`` in MTEB's own layout, where
    :func:`~lbr_st.evaluation.scores.mteb_folder` says, and ``per_query/<org__model>/<revision>/<task>.json``. Earlier
    scores count only if the system's digest and the data's revision are the same; otherwise the task runs again. An
    interrupted run resumes with the split or subset it was in.

    Args:
        system: What to evaluate.
        task: An MTEB task, of the hub or from :func:`~lbr_st.evaluation.mteb_task.retrieval_task`.
        output_folder: Where the scores go.
        batch_size: Texts encoded at once.
        command: The command line to note with the scores.
        name: What to call the task in tables; "" for MTEB's name.

    Raises:
        LBRError: The system cannot run such a task, the task failed, or mteb is missing.
    """
    if system.only_retrieval and not is_retrieval(task):
        fix = "Leave this task out, or evaluate an embedding model."
        raise LBRError(f"ranks documents and cannot do {task.metadata.type}.", where=system.name, fix=fix)
    mteb = import_extra("mteb")
    cache = mteb.ResultCache(mteb_folder(output_folder))
    path = Path(cache.get_task_result_path(task.metadata.name, system.model.mteb_model_meta))
    record = _record_path(output_folder, system, task, system.experiment)
    blank = _blank(system, task, command, name)
    kept = read_record(record)
    if kept is None or not _same(kept, blank):
        kept = blank
    elif kept.date and path.is_file():
        return replace(kept, description=blank.description)
    recorder = _Recorder(task, record, kept)
    own = task.__dict__.get("metadata")
    try:
        with quiet_mteb(), redirect_stderr(StringIO()) if system.only_retrieval else nullcontext():
            found = mteb.evaluate(
                system.model,
                task,
                cache=cache,
                # MTEB's own check of a cached result sees neither other weights nor other local data; ours does.
                overwrite_strategy="only-missing" if _agree(path, kept, cache, system, task) else "always",
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
                show_progress_bar=False,
                co2_tracker=False,
            )
    finally:
        if own is not None:  # a task that unloads its data loses metadata of its own, and a pinned revision with it
            task.metadata = own
    if not found.task_results:
        reason = found.exceptions[0].exception if found.exceptions else "MTEB gave no result"
        fix = "Fix what it says, or leave this task out; --debug shows where it failed."
        raise LBRError(f"the task failed: {reason}", where=task.metadata.name, fix=fix)
    parts = tuple(sorted(recorder.score.parts, key=lambda part: part.key))
    return recorder.keep(parts=parts, score=float(found.task_results[0].get_score()), date=_now())


class _Recorder:
    """Write the record as the parts of a task come in.

    The scores of single queries pass through ``task_specific_scores`` only, which MTEB calls before it averages them.
    """

    def __init__(self, task: Any, path: Path, score: TaskScore) -> None:
        self.path, self.score = path, score
        self.before, self.started = score.seconds, time.perf_counter()
        self.keep()
        # The class's own, since the instance may still be watched for an earlier system.
        original = getattr(type(task), "task_specific_scores", None)
        if original is None:
            return

        def watched(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> Any:
            part = part_of(task.dataset[hf_subset][hf_split], scores, qrels, results, hf_split, hf_subset)
            self.keep(parts=(*(kept for kept in self.score.parts if kept.key != part.key), part))
            return original(task, scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

        task.task_specific_scores = watched

    def keep(self, **found: Any) -> TaskScore:
        seconds = round(self.before + time.perf_counter() - self.started, 3)
        self.score = replace(self.score, **found, seconds=seconds)
        write_record(self.path, self.score)
        return self.score


def part_of(data: Any, scores: Any, qrels: Any, results: Any, split: str, subset: str) -> Part:
    """Collect one part's scores, and the texts that a person wants to see next to them.

    ``data`` is MTEB's split; ``scores`` has query id → measure → value, as pytrec_eval gives it; ``qrels`` and
    ``results`` have query id → document id → relevance and similarity.
    """
    # A query without any hit has no entry; leaving it out would raise the mean.
    asked = [query for query, judged in qrels.items() if query in scores or any(g > 0 for g in judged.values())]
    first = {query: max(results[query], key=results[query].get) for query in asked if results.get(query)}
    best = {query: max(qrels[query], key=qrels[query].get) for query in asked}
    documents = _texts(data["corpus"], {*first.values(), *best.values()})

    def values(measure: str) -> dict[str, float]:
        return {query: float(scores.get(query, {}).get(measure, 0.0)) for query in asked}

    return Part(
        split=split,
        subset=subset,
        num_documents=len(data["corpus"]),
        ndcg_at_10=values("ndcg_cut_10"),
        recall_at_10=sum(values("recall_10").values()) / len(asked),
        recall_at_100=sum(values("recall_100").values()) / len(asked),
        queries=_texts(data["queries"], set(asked)),
        first={query: (document, documents[document]) for query, document in first.items()},
        relevant={query: (document, documents.get(document, "")) for query, document in best.items()},
    )


def _texts(rows: Any, wanted: set[str]) -> dict[str, str]:
    # [:] makes plain lists; a dataset's column would be read item by item, and a corpus has many.
    picked = [row for row, identifier in enumerate(rows["id"][:]) if identifier in wanted]
    chosen = rows.select(picked)[:]
    nothing = [""] * len(picked)
    columns = chosen["id"], chosen.get("title", nothing), chosen.get("text", nothing)
    # 300 characters are enough to look at, not to redistribute.
    return {key: f"{title or ''} {text or ''}".strip()[:300] for key, title, text in zip(*columns, strict=True)}


def _record_path(output_folder: Path | str, system: System, task: AbsTask, experiment: dict[str, Any]) -> Path:
    """Return where a record goes: below ``per_query``, laid out like MTEB's ``results``."""
    meta = system.model.mteb_model_meta.model_copy(update={"experiment_kwargs": experiment or None})
    path = Path(import_extra("mteb").ResultCache(output_folder).get_task_result_path(task.metadata.name, meta))
    return Path(output_folder) / RECORDS / path.relative_to(Path(output_folder) / "results")


def _blank(system: System, task: AbsTask, command: str, name: str) -> TaskScore:
    """Return what is known before the run; without a date it counts as unfinished."""
    return TaskScore(
        model=system.name,
        revision=system.revision,
        digest=system.digest,
        task=name or task.metadata.name,
        task_type=task.metadata.type,
        metric=task.metadata.main_score,
        score=0.0,
        dataset_revision=str(task.metadata.dataset["revision"]),
        asked=sorted(f"{split}/{subset}" for split in task.eval_splits for subset in task.hf_subsets),
        experiment=dict(system.experiment),
        embed_dim=system.embed_dim,
        command=command,
        versions=versions(),
        description=getattr(task, "described", ""),
        folder=system.folder,
        arithmetic=system.arithmetic,
    )


def _same(kept: TaskScore, blank: TaskScore) -> bool:
    """Whether a record was made by this very system from these very splits of this very data."""
    keys = ("model", "revision", "digest", "task", "dataset_revision", "asked", "experiment", "embed_dim", "metric")
    return all(getattr(kept, key) == getattr(blank, key) for key in keys)


def _agree(path: Path, record: TaskScore, cache: Any, system: System, task: AbsTask) -> bool:
    """Whether an unfinished run may resume: our record has all that MTEB has of the task."""
    if path.is_file() and record.parts:
        with suppress(OSError, ValueError, LookupError, TypeError):
            found = cache.load_task_result(task.metadata.name, system.model.mteb_model_meta)
            stored = {(split, scores["hf_subset"]) for split, listed in found.scores.items() for scores in listed}
            return found.dataset_revision == record.dataset_revision and stored <= {part.key for part in record.parts}
    return False


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide a score."""
    return installed_versions(("lbr-st", "mteb", "sentence-transformers", "transformers", "torch", "bm25s"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_beir(
    system: System,
    task: AbsTaskRetrieval,
    *,
    output_folder: Path | str | None = None,
    batch_size: int = 64,
    command: str = "",
    name: str = "",
) -> TaskScore:
    """Score a system on a local task with ``beir``: its exact search over the corpus, its judgement of the rankings.

    Queries go through ``encode_query`` and documents through ``encode_document``; ``beir``'s own ``SentenceBERT`` calls
    ``encode`` for both. Nothing is read back, and without ``output_folder`` no record is kept. For the arguments see
    :func:`evaluate_task`. The experiment is ``{"harness": "beir"}``; ``score`` is BEIR's own, rounded to 5 decimals.

    Raises:
        LBRError: The system is BM25, BEIR lacks its similarity, or a package of the ``eval`` extra is missing.
    """
    started = time.perf_counter()
    if system.only_retrieval:
        raise LBRError("beir's BM25 needs a search server.", where=system.name, fix="Leave --harness out.")
    similarity = system.model.model.similarity_fn_name
    if similarity not in SIMILARITIES:
        fix = f"Set model.similarity_fn_name to one of: {', '.join(SIMILARITIES)}; or evaluate with MTEB."
        raise LBRError(f"BEIR cannot compare embeddings by {similarity!r}.", where=system.name, fix=fix)
    dense, judge = import_extra("beir.retrieval.search.dense"), import_extra("beir.retrieval.evaluation")
    with quiet_mteb():
        task.load_data()  # the very queries and judgements that MTEB scores
    [(split, rows)] = task.dataset["default"].items()
    qrels = rows["relevant_docs"]
    # BEIR's search finds no document whose id is the query's, and looks at the second row of the scores.
    queries = {f"query {key}": text for key, text in zip(rows["queries"]["id"], rows["queries"]["text"], strict=True)}
    if len(queries) == 1:
        queries |= {f"{query} again": text for query, text in queries.items()}
    # BEIR reads len(corpus[i]["title"]), so the key must be there.
    texts = zip(rows["corpus"]["id"], rows["corpus"]["text"], strict=True)
    corpus = {document: {"title": "", "text": text} for document, text in texts}
    options = {"corpus_chunk_size": CHUNK, "batch_size": batch_size, "show_progress_bar": False}
    search = dense.DenseRetrievalExactSearch(_for_beir(system.model), **options)
    cutoffs = [10, 100]
    k_values = [*cutoffs, cutoffs[-1] + 1]  # one may be the query itself
    retriever = judge.EvaluateRetrieval(search, k_values=k_values, score_function=SIMILARITIES[similarity])
    found = retriever.retrieve(corpus, queries)
    results = {query: found[f"query {query}"] for query in qrels}
    # Takes the query's own document out of ``results``.
    means = retriever.evaluate(qrels, results, cutoffs, ignore_identical_ids=task.ignore_identical_ids)
    # The same program and measures that BEIR averages, query by query.
    evaluator = import_extra("pytrec_eval").RelevanceEvaluator(qrels, {"ndcg_cut.10,100", "recall.10,100"})
    score = replace(
        _blank(system, task, command, name),
        score=float(means[0]["NDCG@10"]),
        parts=(part_of(rows, evaluator.evaluate(results), qrels, results, split, "default"),),
        experiment={**system.experiment, "harness": "beir"},
        seconds=round(time.perf_counter() - started, 3),
        date=_now(),
        versions={**versions(), **installed_versions(("beir", "pytrec_eval-terrier"))},
    )
    if output_folder is not None:
        write_record(_record_path(output_folder, system, task, score.experiment), score)
    return score


def _for_beir(encoder: Any) -> Any:
    """Return an encoder as BEIR's search calls it."""

    def encode_queries(queries: Sequence[str], **options: Any) -> Any:
        return encoder.checked(encoder.model.encode_query, list(queries), **options).float()[:, : encoder.size]

    def encode_corpus(corpus: Sequence[Mapping[str, str]], **options: Any) -> Any:
        texts = [item["text"].strip() for item in corpus]
        return encoder.checked(encoder.model.encode_document, texts, **options).float()[:, : encoder.size]

    return SimpleNamespace(encode_queries=encode_queries, encode_corpus=encode_corpus)
