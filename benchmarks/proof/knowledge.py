"""Does what stage 1 taught predict what retrieval gains, query by query?

For each query of a study's set: how much better the model after stage 1 generates the right document from this query's
bottleneck than from another query's, in nats per token (its *knowledge*). Then Spearman's correlation of knowledge with
nDCG@10 of LBR minus nDCG@10 of contrastive-only, as it is and with the latter held fixed: a query that is easy by its
spelling is known, found, and leaves nothing to gain. Knowledge is kept in ``knowledge/``; its file does for the model.

python benchmarks/proof/knowledge.py MODEL_AFTER_STAGE_1 conditions LBR.json CONTRASTIVE.json
python benchmarks/proof/knowledge.py KNOWLEDGE.json conditions LBR.json CONTRASTIVE.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, rankdata, spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from tables import units

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.compute import use_bfloat16
from lbr_st.domains.tasks import domain_task
from lbr_st.files import write_whole
from lbr_st.model.load import load_model

RESULTS = Path(__file__).parent / "knowledge"


def target_nll(model: SentenceTransformer, contexts: list[str], targets: list[str]) -> np.ndarray:
    """Return the mean negative log-likelihood of each target given its context's bottleneck: float64 of (targets,)."""
    loss = IBGenerativeLoss(model, context_weight=0.0, max_target_tokens=48).eval()
    found, kind = [], model.device.type
    for context, target in zip(contexts, targets, strict=True):
        pair = [batch_to_device(model.preprocess([text]), model.device) for text in (context, target)]
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=use_bfloat16("auto", model.device, model)):
            found.append(loss.target_nll(pair).mean().item())
    return np.array(found)


def knowledge(model: SentenceTransformer, queries: list[str], documents: list[str], seed: int = 0) -> np.ndarray:
    """Return what each query's bottleneck saves on its document against another query's, in nats per token."""
    contexts = [(model.prompts["query"] or "") + query for query in queries]
    order = np.random.default_rng(seed).permutation(len(contexts))
    others = np.empty(len(contexts), dtype=int)
    others[order] = np.roll(order, 1)  # nobody keeps its own
    return target_nll(model, [contexts[i] for i in others], documents) - target_nll(model, contexts, documents)


def with_third_fixed(x: np.ndarray, y: np.ndarray, fixed: np.ndarray) -> Any:
    """Return Spearman's partial correlation of x and y given a third, all of shape (queries,); with its p-value."""
    ranks = np.array([rankdata(values) for values in (x, y)])
    line = np.column_stack([np.ones(len(fixed)), rankdata(fixed)])
    rest = ranks.T - line @ np.linalg.lstsq(line, ranks.T, rcond=None)[0]
    return pearsonr(*rest.T)


def main(model: str, source: str, lbr: str, contrastive: str) -> None:
    """Print the means and the correlations; ``model`` is a folder, or a file of what was measured of it before."""
    results = [json.loads(Path(file).read_text(encoding="utf-8")) for file in (lbr, contrastive)]
    task, split, seed = domain_task(source), results[0]["split"], results[0]["seed"]
    data = task.dev if split == "dev" else task.test
    if model.endswith(".json"):
        known = json.loads(Path(model).read_text(encoding="utf-8"))
    else:
        keys = sorted(data.queries)
        documents = [data.corpus[next(iter(data.qrels[key]))] for key in keys]
        found = knowledge(load_model(model), [data.queries[key] for key in keys], documents)
        known = dict(zip(keys, found.round(4).tolist(), strict=True))
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_whole(RESULTS / f"{source}-{split}-{seed}.json", json.dumps(known, indent=0) + "\n")
    report(known, results[0]["per_query"], results[1]["per_query"])


def report(known: dict[str, float], lbr: dict[str, float], contrastive: dict[str, float]) -> None:
    """Print what knowledge has to do with scores, all by query id; a thing's queries count as one, as in the tables."""
    of_things = [units({"per_query": values}) for values in (known, lbr, contrastive)]
    things = sorted(of_things[0])
    know, after, before = (np.array([values[thing] for thing in things]) for values in of_things)
    print(f"{len(known)} queries for {len(things)} things; knowledge {know.mean():.3f} nats a token")
    for name, found in (
        ("LBR's nDCG@10", spearmanr(know, after)),
        ("contrastive-only's", spearmanr(know, before)),
        ("the gain", spearmanr(know, after - before)),
        ("the gain, contrastive-only's held fixed", with_third_fixed(know, after - before, before)),
    ):
        print(f"Spearman of knowledge with {name}: {found.statistic:.3f} (p = {found.pvalue:.2g})")
    for name, which in (("least", know <= np.quantile(know, 0.25)), ("most", know >= np.quantile(know, 0.75))):
        gain = (after - before)[which].mean()
        print(f"quarter with {name} knowledge: {before[which].mean():.4f} to {after[which].mean():.4f} ({gain:+.4f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
