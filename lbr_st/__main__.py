"""``python -m lbr_st``: the same as the ``lbr-st`` command."""

from lbr_st.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
