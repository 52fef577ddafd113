"""lbr-st: Learn Before Represent for Sentence Transformers.

The public names are imported on first use, so that ``import lbr_st`` stays as cheap as an empty module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbr_st.build import build_model, load_model
    from lbr_st.errors import LBRError
    from lbr_st.learn import learn
    from lbr_st.losses import IBGenerativeLoss
    from lbr_st.recipe import Recipe, load_recipe, save_recipe
    from lbr_st.reconstruct import reconstruct
    from lbr_st.release import release
    from lbr_st.represent import represent

__version__ = "0.1.0"

# Where each public name lives. Functions that share their module's name (learn, release, …) win over the module,
# because a submodule's attribute is only set on the package once somebody imports it: see __getattr__.
_HOMES = {
    "IBGenerativeLoss": "losses",
    "LBRError": "errors",
    "Recipe": "recipe",
    "build_model": "build",
    "learn": "learn",
    "load_model": "build",
    "load_recipe": "recipe",
    "reconstruct": "reconstruct",
    "release": "release",
    "represent": "represent",
    "save_recipe": "recipe",
}

__all__ = [
    "IBGenerativeLoss",
    "LBRError",
    "Recipe",
    "__version__",
    "build_model",
    "learn",
    "load_model",
    "load_recipe",
    "reconstruct",
    "release",
    "represent",
    "save_recipe",
]
