"""Forms of query that training does not see: sources that are held out whole, to choose by what is going to ship.

    python benchmarks/proof/suite.py ../shared chem bm25 all-MiniLM-L6-v2 lbr-chem    # models by name, folder or hub id

Each set asks with queries of one form of one source, 150 at most, drawn by a fixed order, for that source's documents,
1,000 at most with the answers. Scores go to ``<work>/suite``. These are development sets: others judge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lbr_st.data.beir import RetrievalSet, stable_order
from lbr_st.evaluation.mteb_task import retrieval_task
from lbr_st.evaluation.run import evaluate_task
from lbr_st.evaluation.scores import TaskScore, markdown_table
from lbr_st.evaluation.systems import load_system
from lbr_st.model.load import safe_name

QUERIES, DOCUMENTS = 150, 1000
SETS = {
    "chem": (
        "chemistry/electrochemistry glossary",
        "chemistry/siyavula_science heading",
        "chemistry/materials_and_methods heading",
        "chemistry/materials_and_methods question",
        "chemistry/elements keywords",
    ),
    "med": (
        "medicine/openstax_anatomy glossary",
        "medicine/openstax_anatomy intent",
        "medicine/openstax_anatomy heading",
        "medicine/openstax_anatomy question",
        "medicine/covid_qa question",
    ),
    "code": (
        "code/python_docs question",
        "code/python_library_docs heading",
        "code/mbpp intent",
        "code/exercism_python intent",
        "code/command_lines intent",
    ),
}
"""By domain: a folder of sources, and the form of its pairs. None is in an archive that training may read."""


def held_out(sources: Path, name: str) -> RetrievalSet:
    """Return a source's queries of one form over its documents."""
    folder, _, form = name.partition(" ")
    with (sources / folder / "pairs.jsonl").open(encoding="utf-8") as lines:
        rows = [row for line in lines if (row := json.loads(line))["form"] == form]
    ids = {text: f"d{number}" for number, text in enumerate(dict.fromkeys(row["document"] for row in rows))}
    answers: dict[str, dict[str, int]] = {}
    for row in rows:
        answers.setdefault(row["query"], {})[ids[row["document"]]] = 1
    asked = stable_order(answers, 0)[:QUERIES]
    chosen = dict.fromkeys(key for query in asked for key in answers[query])
    others = stable_order((key for key in ids.values() if key not in chosen), 0)
    chosen |= dict.fromkeys(others[: max(0, DOCUMENTS - len(chosen))])
    corpus = {key: text for text, key in ids.items() if key in chosen}
    queries = {f"q{number}": query for number, query in enumerate(asked)}
    qrels = {key: answers[query] for key, query in queries.items()}
    return RetrievalSet(
        safe_name(name.partition("/")[2]), corpus, queries, qrels, f"{form} of {folder}", "see SOURCE.md"
    )


def main() -> None:
    """Score what is named, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder of data and sources")
    parser.add_argument("domain", choices=SETS)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--work", type=Path, default=Path("proof-work"))
    arguments = parser.parse_args()
    scores: dict[str, list[TaskScore]] = {}
    systems = {model: load_system(model, precision="auto") for model in arguments.models}
    for name in SETS[arguments.domain]:
        data = held_out(arguments.shared / "sources", name)
        scores[name] = []
        for model, system in systems.items():
            output = arguments.work / "suite"
            scores[name].append(evaluate_task(system, retrieval_task(data), output_folder=output, name=data.name))
            print(f"{name}: {model} {scores[name][-1].ndcg_at_10:.3f}", flush=True)
    columns = {"set": "---", **dict.fromkeys(arguments.models, "---:")}
    rows = [[name, *(f"{score.ndcg_at_10:.3f}" for score in found)] for name, found in scores.items()]
    print("\n".join(markdown_table(columns, rows)))


if __name__ == "__main__":
    main()
