"""What an export of a released model gains in speed, and what it costs in nDCG@10, against the same model in torch.

    python benchmarks/exports.py my-model
    python benchmarks/exports.py my-model --only openvino-int8 --documents 1000 --queries 100 --pairs 5
    python benchmarks/exports.py my-model --only openvino-int8 --only beside --beside all-MiniLM-L6-v2

Prints one JSON object a row, then a table of all. Speed is a ratio: torch in float32 and the export encode the same
documents of 128 tokens in turns, in one process of the exporting environment, with as many threads. Quality is the
difference on development queries of the ChEBI task, both scored here, with its 95% paired bootstrap interval.
"""

from __future__ import annotations

import argparse
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
    "beside": ("torch", "float32", ""),
}
"""Row → backend, precision of the export, and what OpenVINO is told to compute in. ``beside`` is another model."""
MINILM = "all-MiniLM-L6-v2"
"""As ``--beside`` it is taken from the package registry."""


def inside(path: str) -> None:
    """Time and encode in the exporting environment, where neither lbr_st nor mteb is; the request is a JSON file."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    sys.path.append(request["worker"])
    import export_worker as worker
    import torch

    threads, work = os.cpu_count() or 1, Path(path).parent
    torch.set_num_threads(threads)
    if request["backend"] == "openvino":
        loading = {"ov_config": {"INFERENCE_PRECISION_HINT": request["hint"], "INFERENCE_NUM_THREADS": threads}}
    elif request["backend"] == "torch":
        loading = {}
    else:
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        loading = {**worker.LOADING["onnx"], "session_options": session}
    plain = worker.load(worker.copy_release(Path(request["model"]), work / "release", weights=True), "torch")
    export = worker.load(Path(request["export"]), request["backend"], **loading)

    def seconds(model: Any) -> float:
        started = time.perf_counter()
        model.encode_document(request["timed"], batch_size=16, show_progress_bar=False)
        return time.perf_counter() - started

    for model in (plain, export):  # the first call compiles
        seconds(model)
    times = [(seconds(plain), seconds(export)) for _ in range(request["pairs"])]
    for folder, model in ((work.parent, plain), (work, export)):
        for kind, function in (("queries", model.encode_query), ("documents", model.encode_document)):
            if not (folder / f"{kind}.npy").exists():  # torch's are shared by all rows
                np.save(folder / f"{kind}.npy", function(request[kind], batch_size=32, show_progress_bar=False))
    computes_in = "float32"
    if request["backend"] == "openvino":
        computes_in = str(export.transformers_model.request.get_property("INFERENCE_PRECISION_HINT").to_string())
    answer = {"times": times, "computes_in": computes_in, "versions": worker.versions(request)}
    (work / "measured.json").write_text(json.dumps(answer), encoding="utf-8")


def per_query(data: Any, folder: Path) -> list[float]:
    """Return nDCG@10 of each query, in the set's order, from the embeddings that the worker wrote."""
    import pytrec_eval

    rows = [np.load(folder / f"{kind}.npy") for kind in ("queries", "documents")]
    queries, documents = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows)
    run = {
        query: dict(zip(data.corpus, row, strict=True))
        for query, row in zip(data.queries, (queries @ documents.T).tolist(), strict=True)
    }
    found = pytrec_eval.RelevanceEvaluator(data.qrels, {"ndcg_cut.10"}).evaluate(run)
    return [found[query]["ndcg_cut_10"] for query in data.queries]


def measure(name: str, given: argparse.Namespace, command: str, data: Any, timed: list[str], place: Path) -> Any:
    """Export, unless that was done for another row, and return the measured row."""
    from rows import Row  # not at the top: a worker runs this file in isolation

    from lbr_st.evaluation.statistics import paired
    from lbr_st.publish.export import WORKER, environment, export_model

    backend, precision, hint = EXPORTS[name]
    python = environment("openvino" if name == "beside" else backend)
    export, work = given.beside if name == "beside" else place / f"export-{backend}-{precision}", place / name
    if not export.exists():
        export_model(given.model, export, backend=backend, precision=precision, python=python)
    work.mkdir()
    request = {
        "worker": str(WORKER.parent),
        "backend": backend,
        "hint": hint,
        "model": str(given.model.resolve()),
        "export": str(export.resolve()),
        "timed": timed,
        "queries": list(data.queries.values()),
        "documents": list(data.corpus.values()),
        "pairs": given.pairs,
    }
    path = work / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    words = [str(python), "-I", str(Path(__file__).resolve()), "--inside", str(path)]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "true", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        # A negative number is a signal: OpenVINO in bfloat16 dies of SIGFPE with one thread on some processors.
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads((work / "measured.json").read_text(encoding="utf-8"))
    change = paired([per_query(data, place)], [per_query(data, work)])
    eight, (low, high) = precision == "int8", change.interval
    against = "float32 torch of the release" if name == "beside" else "float32 torch of the same model"
    shown = given.beside_name if name == "beside" else name
    row = Row(f"CPU encode throughput, {shown}", against, command, 2.0 if eight else None)
    row.note = (
        f"nDCG@10 on ChEBI's development queries {change.score_b:.4f} against {change.score_a:.4f}: "
        f"{change.difference:+.4f} (95% {low:+.4f} to {high:+.4f})" + ("; it may lose 0.01 at most." if eight else ".")
    )
    rate = [f"{given.timed / statistics.median(times):.1f}" for times in zip(*found["times"], strict=True)]
    details = {
        "documents/s": f"{rate[1]} and {rate[0]}",
        "nDCG@10": f"{change.score_b:.4f} and {change.score_a:.4f}",
        "computes in": found["computes_in"],
        "environment": found["versions"],
    }
    return row.measured([torch_seconds / seconds for torch_seconds, seconds in found["times"]], **details)


def beside(name: str) -> Path:
    """Return the folder of the model to measure next to the exports."""
    if name != MINILM:
        return Path(name)
    from lbr_st.model.bases import resolve_embedder

    return Path(resolve_embedder(MINILM))


def rows(words: list[str], command: str) -> Iterator[Any]:
    """Yield one row an export, as the command line asks; one that fails is left out, and the error printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a released model")
    parser.add_argument("--only", choices=EXPORTS, action="append", help="measure this; may be repeated")
    parser.add_argument("--beside", help=f"another embedder's folder, or {MINILM}, measured next to the exports")
    parser.add_argument("--documents", type=int, default=5_000, help="of the corpus that is searched")
    parser.add_argument("--queries", type=int, default=500, help="development queries")
    parser.add_argument("--pairs", type=int, default=5, help="of timings, torch and export in turns")
    parser.add_argument("--timed", type=int, default=64, help="documents encoded in one timing")
    given = parser.parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from speed import documents
    from transformers import AutoTokenizer

    from lbr_st.domains.tasks import domain_task

    names = [name for name in given.only or EXPORTS if name != "beside" or given.beside]
    if given.beside:
        given.beside_name, given.beside = Path(given.beside).name, beside(given.beside)
    data = domain_task("chebi").dev.slice(given.queries, given.documents)
    timed = documents(AutoTokenizer.from_pretrained(given.model, local_files_only=True), given.timed)
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            try:
                yield measure(name, given, command, data, timed, Path(place))
            except Exception:
                traceback.print_exc()


def main() -> None:
    """Print a JSON object a row."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2])
        return
    table = ["| | documents/s, and torch's in turns | nDCG@10, and torch's |", "|---|---|---|"]
    for row in rows(sys.argv[1:], ""):
        print(json.dumps(vars(row), ensure_ascii=False), flush=True)
        table.append(f"| {row.name} | {row.details['documents/s']} | {row.details['nDCG@10']} |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
