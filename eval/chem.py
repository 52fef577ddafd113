"""Score any Sentence Transformers model on lbr-st's chemistry task: ChEBI name → definition, 1,000 test queries.

python eval/chem.py lbr-chem
python eval/chem.py sentence-transformers/all-MiniLM-L6-v2 --queries 300 --documents 3000
"""

from __future__ import annotations

import argparse
import sys

from lbr_st.errors import LBRError
from lbr_st.pipeline import run_evaluate
from lbr_st.recipe import DataConfig, EvaluateConfig, Recipe


def main() -> int:
    """Evaluate one model beside BM25."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--queries", type=int, default=None, help="a fixed slice of this many queries")
    parser.add_argument("--documents", type=int, default=None, help="over this many documents")
    parser.add_argument("--output", default="results", help="where MTEB's result files and per-query scores go")
    arguments = parser.parse_args()
    recipe = Recipe(
        data=DataConfig(source="chebi"),
        evaluate=EvaluateConfig(num_queries=arguments.queries, num_documents=arguments.documents),
    )
    try:
        run_evaluate(arguments.model, recipe, arguments.output)
    except LBRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
