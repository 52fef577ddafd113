"""Score any Sentence Transformers model on code: docstring → function offline, MTEB(Code, v1) on the hub.

python eval/code.py lbr-code
"""

import sys

from lbr_st.cli import main

SUITE = "code"

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:], "--suite", SUITE]))
