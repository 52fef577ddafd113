"""lbr-code: Python functions by what they do, from docstrings. For a domain of your own, see recipes/README.md.

python recipes/code.py --quick    # minutes on two CPU cores
python recipes/code.py            # the model that ships: two hours, or minutes on a GPU
"""

import sys

from lbr_st.commands import quick_form, recipe_script
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, ReleaseConfig, RepresentConfig

FULL = Recipe(
    name="lbr-code",
    model=ModelConfig(max_seq_length=128, lora_rank=16, lora_alpha=32),
    data=DataConfig(source="pydoc"),
    learn=LearnConfig(
        pairs=["natural", "reverse"],
        max_steps=240,
        batch_size=32,
        warmup_steps=20,
        context_weight=0.0,
        bag_weight=1.0,
        max_target_tokens=64,
        eval_steps=80,
    ),
    represent=RepresentConfig(
        max_steps=460,
        batch_size=64,
        mini_batch_tokens=8192,
        similar_group_size=8,
        learning_rate=1e-3,
        token_learning_rate=5e-3,
        warmup_steps=40,
    ),
    release=ReleaseConfig(license="apache-2.0"),  # as the base
    # The quick form's slice, for speed. `lbr-st evaluate` scores the whole task.
    evaluate=EvaluateConfig(num_queries=300, num_documents=2000, precision="auto"),
)
QUICK = quick_form(FULL, max_seq_length=64, learn_batch_size=24)

if __name__ == "__main__":
    sys.exit(recipe_script(__doc__, FULL, QUICK))
