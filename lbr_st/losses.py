"""Losses that users import: generative learning through the bottleneck, and ranking within a budget of tokens."""

from lbr_st.bottleneck.loss import IBGenerativeLoss
from lbr_st.training.ranking import TokenBudgetRankingLoss

__all__ = ["IBGenerativeLoss", "TokenBudgetRankingLoss"]
