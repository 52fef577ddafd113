"""lbr-code: Python functions by what they do, from docstrings. For a domain of your own, see recipes/README.md.

python recipes/code.py --quick --output lbr-code     # minutes on two CPU cores
python recipes/code.py --output lbr-code             # everything: a GPU, or a long CPU run
"""

import sys

from lbr_st.commands.recipe_script import recipe_script
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

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
    evaluate=EvaluateConfig(),
)
QUICK = Recipe(
    name="lbr-code-quick",
    model=ModelConfig(max_seq_length=64, lora_rank=8, lora_alpha=16),
    data=DataConfig(source="pydoc"),
    # No context loss, to save time: its logits span the whole vocabulary at every position.
    learn=LearnConfig(
        max_steps=12,
        batch_size=24,
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
