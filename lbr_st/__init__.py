"""lbr-st: Learn Before Represent for Sentence Transformers.

The public names are imported on first use, so that ``import lbr_st`` stays as cheap as an empty module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbr_st.bottleneck.loss import IBGenerativeLoss as IBGenerativeLoss
    from lbr_st.bottleneck.reconstruct import reconstruct as reconstruct
    from lbr_st.data.passages import read_documents as read_documents
    from lbr_st.errors import LBRError as LBRError
    from lbr_st.model.build import build_model as build_model
    from lbr_st.model.load import load_model as load_model
    from lbr_st.publish.stock import build_released as build_released
    from lbr_st.publish.stock import release as release
    from lbr_st.recipe import Recipe as Recipe
    from lbr_st.recipe import baseline as baseline
    from lbr_st.recipe import load_recipe as load_recipe
    from lbr_st.recipe import save_recipe as save_recipe
    from lbr_st.training.learn import learn as learn
    from lbr_st.training.made_pairs import make_pairs as make_pairs
    from lbr_st.training.represent import represent as represent

__version__ = "0.1.0"

# Where each public name lives.
_HOMES = {
    "IBGenerativeLoss": "bottleneck.loss",
    "LBRError": "errors",
    "Recipe": "recipe",
    "baseline": "recipe",
    "build_model": "model.build",
    "build_released": "publish.stock",
    "learn": "training.learn",
    "load_model": "model.load",
    "load_recipe": "recipe",
    "make_pairs": "training.made_pairs",
    "reconstruct": "bottleneck.reconstruct",
    "read_documents": "data.passages",
    "release": "publish.stock",
    "represent": "training.represent",
    "save_recipe": "recipe",
}

__all__ = sorted(["__version__", *_HOMES])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"lbr_st.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lbr_st' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
