"""What an export of a released model gains in speed, and what it costs in nDCG@10, against the same model in torch.

    python benchmarks/exports.py my-model
    python benchmarks/exports.py my-model --only openvino-int8 --documents 1000 --queries 100 --pairs 5

Prints one JSON object a row. Speed is a ratio: torch in float32 and the export encode the same documents of about 128
tokens by turns, in one process of the exporting environment, with as many threads. Quality is the difference on
development queries of the ChEBI task, both scored here, with its 95% paired bootstrap interval.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

EXPORTS = {
    "openvino-float32": ("openvino", "float32", "f32"),
    "openvino-bfloat16": ("openvino", "float32", "bf16"),
    "openvino-int8": ("openvino", "int8", "f32"),
    "openvino-int8-bfloat16": ("openvino", "int8", "bf16"),
    "onnx-float32": ("onnx", "float32", ""),
    "onnx-int8": ("onnx", "int8", ""),
}
"""Row → backend, precision of the export, and what OpenVINO is told to compute in."""

TOKENS = 128
"""Of a timed document, with what the tokenizer appends."""
BATCH_SIZE = 16
"""Of the timings."""


def inside(path: str) -> None:
    """Time and encode in the exporting environment, where neither lbr_st nor mteb is; the request is a JSON file."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("worker", request["worker"])
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    import torch

    torch.set_num_threads(request["threads"])
    work = Path(request["work"])
    plain = worker.load(worker.copy_release(Path(request["model"]), work / "release", weights=True), "torch")
    export = worker.load(Path(request["export"]), request["backend"], **loading(worker, request))
    computes_in = worker.computes_in(export, request["backend"])

    def seconds(model: Any) -> float:
        started = time.perf_counter()
        model.encode_document(request["timed"], batch_size=request["batch_size"], show_progress_bar=False)
        return time.perf_counter() - started

    for model in (plain, export):  # the first call compiles
        seconds(model)
    times = [(seconds(plain), seconds(export)) for _ in range(request["pairs"])]
    for name, model in (("export", export), *([("torch", plain)] if request["encode_torch"] else [])):
        for kind, function in (("queries", model.encode_query), ("documents", model.encode_document)):
            np.save(work / f"{name}-{kind}.npy", function(request[kind], batch_size=32, show_progress_bar=False))
    answer = {"times": times, "computes_in": computes_in, "versions": worker.versions(request)}
    (work / "measured.json").write_text(json.dumps(answer), encoding="utf-8")


def loading(worker: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that fix the number of threads and the arithmetic."""
    if request["backend"] == "openvino":
        hint = {"INFERENCE_PRECISION_HINT": request["hint"], "INFERENCE_NUM_THREADS": request["threads"]}
        return {"ov_config": hint}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    return {**worker.LOADING["onnx"], "session_options": options}


def timed_documents(model: Path, corpus: dict[str, str], count: int) -> tuple[list[str], float]:
    """Return documents of about :data:`TOKENS` tokens, of definitions joined, and their mean tokens as cut."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    longest, tokenizer.model_max_length = tokenizer.model_max_length, 10**9

    def length(text: str) -> int:
        return len(tokenizer(f"document: {text}")["input_ids"])

    texts, current = [], ""
    for definition in corpus.values():
        current = f"{current} {definition}".strip()
        if length(current) >= TOKENS:
            while length(current) > TOKENS:
                current = current.rpartition(" ")[0]
            texts.append(current)
            current = ""
        if len(texts) == count:
            break
    return texts, statistics.mean(min(length(text), longest) for text in texts)


def looked_up(data: Any, folder: Path, name: str) -> Any:
    """Return a SentenceTransformer that finds the embedding of each text in the arrays that a worker wrote."""
    import torch
    from sentence_transformers import SentenceTransformer

    tables = {}
    for kind, texts in (("query", data.queries), ("document", data.corpus)):
        rows = np.load(folder / f"{name}-{'queries' if kind == 'query' else 'documents'}.npy")
        tables[kind] = dict(zip((text.strip() for text in texts.values()), rows, strict=True))

    class Table(torch.nn.Module):
        def preprocess(self, texts: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
            found = [tables[(prompt or "document").rstrip(": ")][text.strip()] for text in texts]
            return {"sentence_embedding": torch.from_numpy(np.stack(found))}

        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            return features

        def get_embedding_dimension(self) -> int:
            return int(rows.shape[1])

    prompts = {"query": "query: ", "document": "document: "}
    return SentenceTransformer(modules=[Table()], device="cpu", prompts=prompts)


def per_query(data: Any, folder: Path, name: str) -> list[float]:
    """Return nDCG@10 of each query, in the set's order."""
    from lbr_st.evaluation.run import evaluate_retrieval

    # A folder each: tables are alike to the digest that scores are read back by.
    with tempfile.TemporaryDirectory() as scores:
        result = evaluate_retrieval(
            looked_up(data, folder, name), data, name=f"benchmark/{name}", output_folder=scores, split="dev"
        )
    (part,) = result.parts
    return [part.ndcg_at_10[query] for query in data.queries]


def measure(name: str, model: Path, given: argparse.Namespace, data: Any, shared: dict[Any, Any]) -> dict[str, Any]:
    """Export, unless that was done for another row, and measure one row."""
    from rows import processor  # not at the top: a worker runs this file in isolation

    from lbr_st.evaluation.statistics import paired
    from lbr_st.publish.export import WORKER, environment, export_model

    backend, precision, hint = EXPORTS[name]
    python, threads = environment(backend), os.cpu_count() or 1
    folder = shared["folder"] / f"{backend}-{precision}"
    if not folder.exists():
        shared[folder] = export_model(model, folder, backend=backend, precision=precision, python=python)
    with tempfile.TemporaryDirectory(dir=shared["folder"]) as place:
        request = {
            "worker": str(WORKER),
            "backend": backend,
            "hint": hint,
            "model": str(model.resolve()),
            "export": str(folder.resolve()),
            "work": str(Path(place).resolve()),
            "timed": shared["timed"],
            "queries": list(data.queries.values()),
            "documents": list(data.corpus.values()),
            "encode_torch": "torch" not in shared,
            "threads": threads,
            "batch_size": BATCH_SIZE,
            "pairs": given.pairs,
        }
        path = Path(place) / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        command = [str(python), "-I", str(Path(__file__).resolve()), "--inside", str(path)]
        surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "true", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
        if done.returncode:
            # A negative number is a signal: OpenVINO in bfloat16 dies of SIGFPE with one thread on some processors.
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        found = json.loads((Path(place) / "measured.json").read_text(encoding="utf-8"))
        if "torch" not in shared:
            shared["torch"] = per_query(data, Path(place), "torch")
        scores = per_query(data, Path(place), "export")
    ratios = [torch_seconds / seconds for torch_seconds, seconds in found["times"]]
    change = paired([shared["torch"]], [scores])
    export = shared[folder]
    return {
        "name": name,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "pairs": len(ratios),
        "computes_in": found["computes_in"],
        "ndcg_float32": round(change.score_a, 5),
        "ndcg_export": round(change.score_b, 5),
        "ndcg_change": round(change.difference, 5),
        "ndcg_interval": [round(end, 5) for end in change.interval],
        "queries": len(data.queries),
        "documents": len(data.corpus),
        "probes_lowest_cosine": round(export.parity.lowest, 6),
        "probes_mean_cosine": round(export.parity.mean, 6),
        "megabytes": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1),
        "timed_documents": len(shared["timed"]),
        "timed_tokens": round(shared["tokens"], 1),
        "batch_size": BATCH_SIZE,
        "threads": threads,
        "environment": found["versions"],
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def measured(words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one result a row, as the command line asks; of one that fails its name and the error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a released model")
    parser.add_argument("--only", choices=EXPORTS, action="append", help="measure this; may be repeated")
    parser.add_argument("--documents", type=int, default=5_000, help="of the corpus that is searched")
    parser.add_argument("--queries", type=int, default=500, help="development queries")
    parser.add_argument("--pairs", type=int, default=5, help="of timings, torch and export by turns")
    parser.add_argument("--timed", type=int, default=64, help="documents encoded in one timing")
    given = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lbr_st.domains.tasks import domain_task

    whole = domain_task("chebi").dev
    data = whole.slice(given.queries, given.documents)
    with tempfile.TemporaryDirectory() as place:
        timed, tokens = timed_documents(given.model, whole.corpus, given.timed)
        shared: dict[Any, Any] = {"folder": Path(place), "timed": timed, "tokens": tokens}
        for name in given.only or EXPORTS:
            try:
                yield measure(name, given.model, given, data, shared)
            except Exception as error:
                traceback.print_exc()
                yield {"name": name, "failed": str(error)}


def rows(words: list[str], command: str) -> list[Any]:
    """Return the rows of the benchmark; see :func:`measured`."""
    from rows import Row

    made = []
    for found in measured(words):
        if "failed" in found:
            continue
        eight = found["name"].endswith("int8")
        row = Row(
            f"CPU encode throughput, {found['name']}",
            "float32 torch of the same model",
            command,
            2.0 if eight else None,
        )
        low, high = found["ndcg_interval"]
        row.note = (
            f"nDCG@10 on ChEBI's development queries {found['ndcg_export']:.4f} against {found['ndcg_float32']:.4f}: "
            f"{found['ndcg_change']:+.4f} (95% {low:+.4f} to {high:+.4f})"
            + ("; it may lose 0.01 at most." if eight else ".")
        )
        row.measured([found["ratio"]], environment=found["environment"])
        row.low, row.high, row.pairs = found["ratio_min"], found["ratio_max"], found["pairs"]
        made.append(row)
    return made


def main() -> int:
    """Print a JSON object a row. A row that fails says so, and the others are measured all the same."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
        return 0
    failed = False
    for row in measured(sys.argv[1:]):
        failed |= "failed" in row
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
