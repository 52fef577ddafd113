"""lbr-med: diseases and phenotypes, from Mondo and HPO. For a domain of your own, see recipes/README.md.

python recipes/medical.py --quick --output lbr-med     # minutes on two CPU cores
python recipes/medical.py --output lbr-med             # everything: a GPU, or a long CPU run
"""

import sys

from lbr_st.commands.recipe_script import recipe_script
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

FULL = Recipe(
    name="lbr-med",
    model=ModelConfig(max_seq_length=128, lora_rank=16, lora_alpha=32),
    data=DataConfig(source="mondo", also=["conditions"], synonyms=True),
    learn=LearnConfig(
        pairs=["natural", "reverse", "reconstruct", "records"],
        max_steps=3000,
        batch_size=64,
        warmup_steps=100,
        eval_steps=250,
        max_target_tokens=64,
    ),
    represent=RepresentConfig(
        max_steps=1500, batch_size=256, learning_rate=5e-4, token_learning_rate=2.5e-3, warmup_steps=100
    ),
    evaluate=EvaluateConfig(),
)
QUICK = Recipe(
    name="lbr-med-quick",
    model=ModelConfig(max_seq_length=36, lora_rank=8, lora_alpha=16),
    data=DataConfig(source="mondo"),
    # No context loss, to save time: its logits span the whole vocabulary at every position.
    learn=LearnConfig(
        max_steps=12,
        batch_size=32,
        learning_rate=5e-4,
        token_learning_rate=3e-3,
        warmup_steps=3,
        eval_steps=12,
        num_eval_pairs=16,
        max_target_tokens=24,
        context_weight=0.0,
    ),
    represent=RepresentConfig(
        max_steps=16, batch_size=40, learning_rate=1e-3, token_learning_rate=3e-3, warmup_steps=2
    ),
    # A fixed slice of the test queries, so that it ends while you wait; the table names it.
    evaluate=EvaluateConfig(num_queries=300, num_documents=3000, batch_size=32, precision="auto"),
)

if __name__ == "__main__":
    sys.exit(recipe_script(__doc__, FULL, QUICK))
