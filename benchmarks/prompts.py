"""What a client loses that gives queries the documents' prompt, or no prompt at all: nDCG@10 on a model's own slice.

    lbr-st build lbr-chem && python benchmarks/prompts.py lbr-chem

Prints a Markdown table, with the difference to the right prompts and its 95% paired bootstrap interval.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytrec_eval
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer

from lbr_st.data.beir import RetrievalSet
from lbr_st.domains.tasks import domain_task
from lbr_st.evaluation.statistics import paired

WAYS = {
    "the right prompts": ("query", "document"),
    "the document's on both sides (plain `encode`)": ("document", "document"),
    "none": (None, None),
}
"""Row → names of the prompts of queries and of documents."""


def encode(model: SentenceTransformer, texts: list[str], prompt: str | None) -> np.ndarray:
    """Return normalised embeddings [texts, dimension]; ``prompt`` is a name, or None for none at all."""
    options = {"prompt": ""} if prompt is None else {"prompt_name": prompt}
    rows = model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_tensor=True, **options).float()
    return F.normalize(rows).numpy()


def ndcg(data: RetrievalSet, queries: np.ndarray, documents: np.ndarray) -> list[float]:
    """Return nDCG@10 of each query, in the set's order."""
    run = {
        query: dict(zip(data.corpus, row, strict=True))
        for query, row in zip(data.queries, (queries @ documents.T).tolist(), strict=True)
    }
    found = pytrec_eval.RelevanceEvaluator(data.qrels, {"ndcg_cut.10"}).evaluate(run)
    return [found[query]["ndcg_cut_10"] for query in data.queries]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a released model")
    parser.add_argument("--task", default="chebi", help="domain task whose test queries are asked")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--documents", type=int, default=3_000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    given = parser.parse_args()
    options = {"dtype": given.dtype}
    model = SentenceTransformer(str(given.model), device="cpu", local_files_only=True, model_kwargs=options)
    data = domain_task(given.task).test.slice(given.queries, given.documents)
    texts = list(data.queries.values()), list(data.corpus.values())
    kept: dict[tuple[int, str | None], np.ndarray] = {}
    for prompts in WAYS.values():
        for side, prompt in enumerate(prompts):
            if (side, prompt) not in kept:
                kept[side, prompt] = encode(model, texts[side], prompt)
    scores = {name: ndcg(data, *(kept[key] for key in enumerate(prompts))) for name, prompts in WAYS.items()}
    print("| prompts | nDCG@10 | difference | 95% interval |\n|---|---:|---:|:---:|")
    for name, each in scores.items():
        change = paired([scores["the right prompts"]], [each])
        low, high = change.interval
        print(f"| {name} | {change.score_b:.4f} | {change.difference:+.4f} | {low:+.4f} to {high:+.4f} |")
    right = kept[0, "query"]
    for prompt in ("document", None):
        print(f"mean cosine of a query's embedding with the prompt {prompt} to the right one:", end=" ")
        print(f"{(right * kept[0, prompt]).sum(axis=1).mean():.3f}")


if __name__ == "__main__":
    main()
