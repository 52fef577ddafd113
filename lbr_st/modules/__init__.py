"""Sentence Transformers modules of the training model."""

from lbr_st.modules.bottleneck_pooler import BottleneckPooler
from lbr_st.modules.causal_backbone import CausalBackbone

__all__ = ["BottleneckPooler", "CausalBackbone"]
