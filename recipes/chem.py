"""lbr-chem: chemistry, from ChEBI and names of compounds. For a domain of your own, see recipes/README.md.

python recipes/chem.py --quick    # minutes on two CPU cores
python recipes/chem.py            # the model that ships: two hours
"""

import sys

from lbr_st.commands import quick_form, recipe_script
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, ReleaseConfig, RepresentConfig

FULL = Recipe(
    name="lbr-chem",
    model=ModelConfig(max_seq_length=128, lora_rank=16, lora_alpha=32),
    data=DataConfig(source="chebi", also=["compounds"]),
    # Records are the open regime: they say what every compound is called, also those that `compounds` asks for.
    learn=LearnConfig(
        pairs=["records", "natural"],
        max_steps=160,
        batch_size=64,
        batch_tokens=8192,
        warmup_steps=16,
        context_weight=0.0,
        bag_weight=1.0,
        max_target_tokens=36,
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
        eval_steps=50,
    ),
    release=ReleaseConfig(license="apache-2.0"),  # as the base
    # The quick form's slice, for speed. `lbr-st evaluate` scores the whole task.
    evaluate=EvaluateConfig(num_queries=300, num_documents=3000, precision="auto"),
)
QUICK = quick_form(FULL, max_seq_length=48, learn_batch_size=32)

if __name__ == "__main__":
    sys.exit(recipe_script(__doc__, FULL, QUICK))
