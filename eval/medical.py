"""Score any Sentence Transformers model on medicine: Mondo name → definition offline, MTEB(Medical, v1) on the hub.

python eval/medical.py lbr-med
"""

import sys

from lbr_st.cli import main

SUITE = "medical"

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:], "--suite", SUITE]))
