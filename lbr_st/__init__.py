"""lbr-st: Learn Before Represent for Sentence Transformers."""
