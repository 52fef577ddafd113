"""Losses: generative learning through the bottleneck, and ranking within a budget of tokens."""

from lbr_st.losses.ib_generative import IBGenerativeLoss
from lbr_st.losses.ranking import TokenBudgetRankingLoss

__all__ = ["IBGenerativeLoss", "TokenBudgetRankingLoss"]
