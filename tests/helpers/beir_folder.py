"""BEIR folders for tests, as published ones look."""

import json
from pathlib import Path


def write_beir(splits, folder):
    """Write retrieval sets that share a corpus, by the names of their splits."""
    (Path(folder) / "qrels").mkdir(parents=True, exist_ok=True)
    queries = {key: text for one in splits.values() for key, text in one.queries.items()}
    corpus = next(iter(splits.values())).corpus
    for name, texts, more in (("corpus", corpus, {"title": ""}), ("queries", queries, {})):
        lines = (json.dumps({"_id": key, **more, "text": text}, ensure_ascii=False) for key, text in texts.items())
        (Path(folder) / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for split, one in splits.items():
        judged = [f"{query}\t{key}\t{grade}" for query, of in one.qrels.items() for key, grade in of.items()]
        lines = ["query-id\tcorpus-id\tscore", *judged, ""]
        (Path(folder) / "qrels" / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8")
