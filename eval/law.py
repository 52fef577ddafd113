"""Score any Sentence Transformers model on law: MTEB(Law, v1) on the hub.

python eval/law.py lbr-law
"""

import sys

from lbr_st.cli import main

SUITE = "law"

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:], "--suite", SUITE]))
