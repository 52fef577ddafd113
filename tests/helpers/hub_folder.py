"""A folder in the schema of MTEB's datasets on the hub, so that a hub task's own class can read local data."""

import json


def write_hub_folder(folder, parts):
    """Write ``{(subset, split): (corpus, queries, qrels)}``; a subset None has the plain configuration names."""
    configs = {}
    for (subset, split), (corpus, queries, qrels) in parts.items():
        prefix = f"{subset}-" if subset else ""
        judged = [
            {"query-id": q, "corpus-id": d, "score": score} for q, docs in qrels.items() for d, score in docs.items()
        ]
        rows = {
            f"{prefix}corpus": [{"_id": key, "title": "", "text": text} for key, text in corpus.items()],
            f"{prefix}queries": [{"_id": key, "text": text} for key, text in queries.items()],
            (f"{prefix}qrels" if subset else "default"): judged,
        }
        for config, items in rows.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(item) + "\n" for item in items))
            configs.setdefault(config, []).append((split, f"{config}/{split}.jsonl"))
    lines = ["---", "configs:"]
    for config, files in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in files:
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def repoint(task, folder):
    """Let a hub task read a local folder; its name, splits, subsets and loader stay its own."""
    dataset = {"path": str(folder), "revision": "0" * 40}
    task.metadata = task.metadata.model_copy(update={"dataset": dataset})
    return task
