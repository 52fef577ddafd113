"""What an evaluation costs apart from the encoding: seconds and memory of the harness, and of BM25.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --only memory --documents 20000 --queries 500

Every measurement runs in a process of its own and prints one JSON object. Texts are synthetic and models have random
weights, so nothing is downloaded; ``bm25-chebi`` runs on the real ChEBI task. Where the machine has other work ("load"
above 0), the processor's seconds tell more than those of the clock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import tempfile
import time
from typing import Any

from memory import held_gib, peak_gib
from rows import in_a_process, processor

from lbr_st.files import installed_versions

DIMENSIONS = 576
"""Of the embeddings: SmolLM2-135M's."""
WORDS = [f"word{number}" for number in range(5000)]
PACKAGES = ("lbr-st", "mteb", "beir", "bm25s", "sentence-transformers", "transformers", "datasets", "torch")


def synthetic_set(num_documents: int, num_queries: int) -> Any:
    """Return documents of 20 to 60 random words, and queries of 8; each query has one relevant document."""
    from lbr_st.data.beir import RetrievalSet

    draw = random.Random(0)
    return RetrievalSet(
        "synthetic",
        {f"d{n}": " ".join(draw.choices(WORDS, k=draw.randint(20, 60))) for n in range(num_documents)},
        {f"q{n}": " ".join(draw.choices(WORDS, k=8)) for n in range(num_queries)},
        {f"q{n}": {f"d{n % num_documents}": 1} for n in range(num_queries)},
    )


def random_vectors() -> Any:
    """Return a SentenceTransformer that gives random vectors at once: the time that is left is the harness's."""
    import torch
    from sentence_transformers import SentenceTransformer

    class Vectors(torch.nn.Module):
        def preprocess(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
            return {"sentence_embedding": torch.randn(len(texts), DIMENSIONS)}

        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            return features

        def get_embedding_dimension(self) -> int:
            return DIMENSIONS

    return SentenceTransformer(modules=[Vectors()], device="cpu")


class Times:
    """Seconds by the clock and of the processor: of all that :func:`evaluate` does, and of ``model.encode`` alone."""

    def __init__(self) -> None:
        self.all, self.encoding = [0.0, 0.0], [0.0, 0.0]

    def counted(self, work: Any, spent: list[float]) -> Any:
        """Return ``work`` as a function that adds its seconds to ``spent``."""

        def counting(*args: Any, **kwargs: Any) -> Any:
            before = time.perf_counter(), time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - before[0]
                spent[1] += time.process_time() - before[1]

        return counting


def evaluate(model: Any, data: Any) -> Times:
    """Score a model; return the seconds that it took."""
    from lbr_st.evaluation import embedding_system, evaluate_task, retrieval_task

    importlib.import_module("mteb.models")  # what a process does once is not the harness's
    times = Times()
    model.encode = times.counted(model.encode, times.encoding)
    with tempfile.TemporaryDirectory() as folder:
        system, task = embedding_system(model, "benchmark/model"), retrieval_task(data)
        times.counted(evaluate_task, times.all)(system, task, output_folder=folder)
    return times


def harness(documents: int, queries: int) -> dict[str, Any]:
    """Measure the seconds that are not encoding, with embeddings that cost nothing."""
    times = evaluate(random_vectors(), synthetic_set(documents, queries))
    clock, of_processor = (whole - part for whole, part in zip(times.all, times.encoding, strict=True))
    return {
        "seconds_beside_encoding": round(clock, 2),
        "processor_seconds_beside_encoding": round(of_processor, 2),
        # Encoding takes 95% if it takes 19 times as long as the rest.
        "texts_per_second_at_95_percent": round((documents + queries) / 19 / clock, 1),
    }


def bm25(documents: int, queries: int) -> dict[str, Any]:
    """Measure BM25 from a set in memory to its scores."""
    return _bm25(synthetic_set(documents, queries))


def bm25_chebi(documents: int, queries: int) -> dict[str, Any]:
    """Measure the same on ChEBI's definitions."""
    from lbr_st.domains.chemistry import chebi_task

    return _bm25(chebi_task(num_documents=documents, num_test=queries).test)


def _bm25(data: Any) -> dict[str, Any]:
    from lbr_st.evaluation import evaluate_bm25

    before = time.perf_counter()
    for module in ("mteb.models", "sentence_transformers"):  # mteb's first evaluation imports the second
        importlib.import_module(module)
    started, of_processor = time.perf_counter(), time.process_time()
    result = evaluate_bm25(data)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(time.process_time() - of_processor, 2),
        "seconds_importing_before": round(started - before, 2),
        "ndcg_at_10": round(result.ndcg_at_10 or 0.0, 4),
    }


def memory(documents: int, queries: int) -> dict[str, Any]:
    """Measure the peak of the resident memory, beyond what the process holds with the model loaded."""
    model = random_vectors()
    model.encode(["a text"])
    before = held_gib()
    times = evaluate(model, synthetic_set(documents, queries))
    return {
        "dimensions": DIMENSIONS,
        "mib_with_the_model": round(1024 * before),
        "mib_peak_beyond_it": round(1024 * (peak_gib() - before)),
        "seconds": round(times.all[0], 2),
    }


MEASUREMENTS: dict[str, tuple[Any, int, int]] = {
    "harness": (harness, 15_000, 1_000),
    "bm25": (bm25, 15_000, 1_000),
    "bm25-chebi": (bm25_chebi, 15_000, 1_000),
    "memory": (memory, 100_000, 1_000),
}
"""Of each, the numbers of documents and queries."""


def main() -> None:
    """Run each measurement in a process of its own, which begins with empty memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="Measure this; may be repeated.")
    parser.add_argument("--documents", type=int, help="How many; by default a number for each measurement.")
    parser.add_argument("--queries", type=int, help="The same.")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    surroundings = {"processor": processor(), "cores": os.cpu_count(), "versions": installed_versions(PACKAGES)}
    for name in given.only or MEASUREMENTS:
        measure, documents, queries = MEASUREMENTS[name]
        size = {"documents": given.documents or documents, "queries": given.queries or queries}
        if given.here:
            print(json.dumps({"measured": name, **size, **measure(**size)}))
            continue
        words = [f"--{key}={value}" for key, value in size.items()]
        found = in_a_process(__file__, "--here", f"--only={name}", *words)
        load = round(os.getloadavg()[0], 1)
        print(json.dumps({**found, **surroundings, "load": load}), flush=True)


if __name__ == "__main__":
    main()
