"""lbr-code: Python functions by what they do, from docstrings. For a domain of your own, see recipes/README.md.

python recipes/code.py --quick --output lbr-code     # minutes on two CPU cores
python recipes/code.py --output lbr-code             # everything: a GPU, or a long CPU run
"""

import sys

from lbr_st.commands.recipe_script import quick_form, recipe_script
from lbr_st.recipe import DataConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

FULL = Recipe(
    name="lbr-code",
    model=ModelConfig(max_seq_length=256, lora_rank=16, lora_alpha=32),
    data=DataConfig(source="pydoc"),
    learn=LearnConfig(
        pairs=["natural", "reverse", "reconstruct"],
        max_steps=3000,
        batch_size=64,
        warmup_steps=100,
        eval_steps=250,
        max_target_tokens=64,
    ),
    represent=RepresentConfig(
        max_steps=1500, batch_size=256, learning_rate=5e-4, token_learning_rate=2.5e-3, warmup_steps=100
    ),
)
QUICK = quick_form(FULL, max_seq_length=64, learn_batch_size=24)

if __name__ == "__main__":
    sys.exit(recipe_script(__doc__, FULL, QUICK))
