"""lbr-st: Learn Before Represent for Sentence Transformers.

The public names are imported on first use, so that ``import lbr_st`` stays as cheap as an empty module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbr_st.bottleneck.loss import IBGenerativeLoss
    from lbr_st.bottleneck.reconstruct import reconstruct
    from lbr_st.errors import LBRError
    from lbr_st.model.build import build_model
    from lbr_st.model.load import load_model
    from lbr_st.publish.stock import build_released, release
    from lbr_st.recipe import Recipe, baseline, load_recipe, save_recipe
    from lbr_st.training.learn import learn
    from lbr_st.training.represent import represent

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
    "reconstruct": "bottleneck.reconstruct",
    "release": "publish.stock",
    "represent": "training.represent",
    "save_recipe": "recipe",
}

__all__ = [
    "IBGenerativeLoss",
    "LBRError",
    "Recipe",
    "__version__",
    "baseline",
    "build_model",
    "build_released",
    "learn",
    "load_model",
    "load_recipe",
    "reconstruct",
    "release",
    "represent",
    "save_recipe",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"lbr_st.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lbr_st' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
