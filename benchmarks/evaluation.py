"""What an evaluation costs beside the encoding: seconds and memory of the harness, and of BM25.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --only memory --memory_documents 20000 --memory_queries 500

Every measurement runs in a process of its own and prints one JSON object. Texts are synthetic and models have random
weights, so nothing is downloaded; with ``--bm25_data chebi`` BM25 runs on the real ChEBI task. Where the machine has
other work ("load" above 0 and a bit), the processor's seconds tell more than those of the clock.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rows import processor

DIMENSIONS = 576
"""Of the embeddings: SmolLM2-135M's."""
WORDS = [f"word{number}" for number in range(5000)]
PACKAGES = ("lbr-st", "mteb", "beir", "bm25s", "sentence-transformers", "transformers", "datasets", "torch")


def synthetic_set(num_documents: int, num_queries: int) -> Any:
    """Return documents of 20 to 60 random words, and queries of 8; each query has one relevant document."""
    from lbr_st.data import RetrievalSet

    draw = random.Random(0)
    return RetrievalSet(
        "synthetic",
        {f"d{n}": " ".join(draw.choices(WORDS, k=draw.randint(20, 60))) for n in range(num_documents)},
        {f"q{n}": " ".join(draw.choices(WORDS, k=8)) for n in range(num_queries)},
        {f"q{n}": {f"d{n % num_documents}": 1} for n in range(num_queries)},
    )


def random_vectors() -> Any:
    """Return a SentenceTransformer that gives random vectors at once: what is left of the time is the harness's."""
    import torch
    from sentence_transformers import SentenceTransformer

    class Vectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def preprocess(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
            return {"rows": torch.zeros(len(texts))}

        tokenize = preprocess

        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            rows = len(features["rows"])
            features["sentence_embedding"] = torch.randn(rows, DIMENSIONS, generator=self.generator)
            return features

        def get_embedding_dimension(self) -> int:
            return DIMENSIONS

    return SentenceTransformer(modules=[Vectors()], device="cpu")


def random_smollm2(folder: Path) -> Any:
    """Return a SentenceTransformer in the shape of SmolLM2-135M with random weights; a word is a token."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<unk>", "<pad>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=49152,
        hidden_size=DIMENSIONS,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        pad_token_id=1,
    )
    LlamaModel(shape).save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(DIMENSIONS, pooling_mode="lasttoken"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


class Watch:
    """Seconds, by the clock and of the processor, of all that happens and of ``model.encode`` alone."""

    def __init__(self, model: Any) -> None:
        self.encoding = [0.0, 0.0]
        encode = model.encode

        def watched(*args: Any, **kwargs: Any) -> Any:
            started = self._now()
            try:
                return encode(*args, **kwargs)
            finally:
                self.encoding = [spent + more for spent, more in zip(self.encoding, self._since(started), strict=True)]

        model.encode = watched
        self.started = self._now()

    def stop(self) -> Watch:
        """Take the times."""
        self.all = self._since(self.started)
        self.beside = [whole - part for whole, part in zip(self.all, self.encoding, strict=True)]
        return self

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _since(self, then: tuple[float, float]) -> list[float]:
        return [now - before for now, before in zip(self._now(), then, strict=True)]


def evaluate(model: Any, data: Any, arguments: argparse.Namespace) -> Watch:
    """Score a model, watched."""
    from lbr_st.evaluation import embedding_system, evaluate_beir, evaluate_task, retrieval_task

    # What a process does once, however much it evaluates, is not the harness's.
    models = importlib.import_module("mteb.models")
    watch = Watch(model)
    if arguments.harness == "beir":
        evaluate_beir(model, data, name="benchmark/model")
        return watch.stop()
    system = embedding_system(model, "benchmark/model")
    if arguments.chunk:
        system = replace(system, model=models.SearchEncoderWrapper(system.model, corpus_chunk_size=arguments.chunk))
    with tempfile.TemporaryDirectory() as folder:
        evaluate_task(system, retrieval_task(data), output_folder=folder)
    return watch.stop()


def measure_harness(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the seconds that are not encoding, with embeddings that cost nothing."""
    documents, queries = arguments.documents, arguments.queries
    watch = evaluate(random_vectors(), synthetic_set(documents, queries), arguments)
    return {
        "documents": documents,
        "queries": queries,
        "seconds_beside_encoding": round(watch.beside[0], 2),
        "processor_seconds_beside_encoding": round(watch.beside[1], 2),
        # Encoding takes 95% if it takes 19 times what is beside it.
        "texts_per_second_at_95_percent": round((documents + queries) / 19 / watch.beside[0], 1),
    }


def measure_encoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a SmolLM2-135M's encoding on a part of the documents, with the harness around it."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_smollm2(Path(folder))
    documents, queries = arguments.part_documents, arguments.part_queries
    watch = evaluate(model, synthetic_set(documents, queries), arguments)
    return {
        "documents": documents,
        "queries": queries,
        "seconds": round(watch.all[0], 2),
        "seconds_encoding": round(watch.encoding[0], 2),
        "share_encoding": round(watch.encoding[0] / watch.all[0], 4),
        "texts_per_second": round((documents + queries) / watch.encoding[0], 2),
    }


def measure_bm25(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure BM25 from a set in memory to its scores."""
    from lbr_st.evaluation import evaluate_bm25

    if arguments.bm25_data == "chebi":
        from lbr_st.data import chebi_task

        data = chebi_task(num_documents=arguments.documents, num_test=arguments.queries).test
    else:
        data = synthetic_set(arguments.documents, arguments.queries)
    before = time.perf_counter()
    for module in ("mteb.models", "sentence_transformers"):  # the second is imported by mteb's first evaluation
        importlib.import_module(module)
    started, processor = time.perf_counter(), time.process_time()
    result = evaluate_bm25(data)
    return {
        "data": data.name,
        "documents": len(data.corpus),
        "queries": len(data.queries),
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        "seconds_importing_before": round(started - before, 2),
        "ndcg_at_10": round(result.ndcg_at_10 or 0.0, 4),
    }


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak of the resident memory, beyond what the process holds with the model loaded."""
    import psutil

    model = random_vectors()
    model.encode(["a text"])
    before = psutil.Process().memory_info().rss / 2**20
    watch = evaluate(model, synthetic_set(arguments.memory_documents, arguments.memory_queries), arguments)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {
        "documents": arguments.memory_documents,
        "queries": arguments.memory_queries,
        "dimensions": DIMENSIONS,
        "corpus_chunk_size": arguments.chunk or "default",
        "mib_with_the_model": round(before),
        "mib_peak_beyond_it": round(peak - before),
        "seconds": round(watch.all[0], 2),
    }


MEASUREMENTS = {
    "harness": measure_harness,
    "encoding": measure_encoding,
    "bm25": measure_bm25,
    "memory": measure_memory,
}


def surroundings() -> dict[str, Any]:
    """Return what a figure depends on beside the code."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="Measure this; may be repeated.")
    parser.add_argument("--documents", type=int, default=15_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--part_documents", type=int, default=300, help="For the encoding of a real size of model.")
    parser.add_argument("--part_queries", type=int, default=20)
    parser.add_argument("--memory_documents", type=int, default=100_000)
    parser.add_argument("--memory_queries", type=int, default=1_000)
    parser.add_argument("--bm25_data", choices=("synthetic", "chebi"), default="synthetic")
    parser.add_argument("--harness", choices=("mteb", "beir"), default="mteb")
    parser.add_argument("--chunk", type=int, default=0, help="Documents that MTEB encodes at once; 0: its default.")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run each measurement in a process of its own, which begins with nothing in its memory."""
    arguments = parse()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if arguments.here:
        (name,) = arguments.only
        print(json.dumps({"measured": name, "harness": arguments.harness, **MEASUREMENTS[name](arguments)}))
        return
    given = [f"--{key}={value}" for key, value in vars(arguments).items() if key not in ("only", "here")]
    found = {}
    for name in arguments.only or MEASUREMENTS:
        command = [sys.executable, __file__, *given, "--here", f"--only={name}"]
        output = subprocess.run(command, capture_output=True, text=True, check=False)
        if output.returncode:
            sys.exit(f"{name} failed:\n{output.stderr}")
        found[name] = json.loads(output.stdout.splitlines()[-1])
        print(json.dumps({**found[name], **surroundings()}), flush=True)
    if {"harness", "encoding"} <= set(found):
        texts = arguments.documents + arguments.queries
        encoding = texts / found["encoding"]["texts_per_second"]
        beside = found["harness"]["seconds_beside_encoding"]
        row = {
            "extrapolated": "share of encoding, SmolLM2-135M's measured texts a second x the measured harness",
            "texts": texts,
            "seconds_encoding": round(encoding),
            "share_encoding": round(encoding / (encoding + beside), 4),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
