"""Losses, in the form that SentenceTransformerTrainer takes."""

from lbr_st.losses.ib_generative import IBGenerativeLoss

__all__ = ["IBGenerativeLoss"]
