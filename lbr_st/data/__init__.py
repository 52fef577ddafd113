"""Data: domain text in, stage-1 examples and retrieval sets out. Importing this loads no heavy library."""

from lbr_st.data.beir import RetrievalSet, read_beir, write_beir
from lbr_st.data.pairs import continue_pairs, mix, natural_pairs, reconstruct_pairs, record_pairs
from lbr_st.data.sources import read_pairs, read_texts

__all__ = [
    "RetrievalSet",
    "continue_pairs",
    "mix",
    "natural_pairs",
    "read_beir",
    "read_pairs",
    "read_texts",
    "reconstruct_pairs",
    "record_pairs",
    "write_beir",
]
