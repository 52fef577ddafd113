"""Score any Sentence Transformers model on chemistry: ChEBI name → definition offline, ChemTEB on the hub.

python eval/chem.py lbr-chem --only local
python eval/chem.py bm25 --only local --evaluate.num_queries 300 --evaluate.num_documents 3000
"""

import sys

from lbr_st.cli import main

SUITE = "chem"

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:], "--suite", SUITE]))
