"""lbr-chem: chemistry, from ChEBI. Copy this file for a domain of your own and change the data and the numbers.

python recipes/chem.py --quick --output lbr-chem     # minutes on two CPU cores
python recipes/chem.py --output lbr-chem             # everything: a GPU, or a long CPU run
"""

from __future__ import annotations

import argparse
import sys

from lbr_st.commands.command import command_line
from lbr_st.commands.exit_status import exit_status
from lbr_st.pipeline import run
from lbr_st.recipe import DataConfig, EvaluateConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

FULL = Recipe(
    name="lbr-chem",
    model=ModelConfig(base="smollm2-135m", max_seq_length=192, lora_rank=32, lora_alpha=64),
    data=DataConfig(source="chebi"),
    learn=LearnConfig(max_steps=3000, batch_size=64, warmup_steps=100, eval_steps=250, max_target_tokens=64),
    represent=RepresentConfig(max_steps=1500, batch_size=256, warmup_steps=100),
    evaluate=EvaluateConfig(),
)
QUICK = Recipe(
    name="lbr-chem-quick",
    model=ModelConfig(base="smollm2-135m", max_seq_length=36, lora_rank=8, lora_alpha=16),
    data=DataConfig(source="chebi"),
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


def main() -> int:
    """Run the quick or the full recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run that ends in minutes on two CPU cores")
    parser.add_argument("--output", default="lbr-chem", help="folder of the released model")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    arguments = parser.parse_args()

    def work() -> None:
        recipe = QUICK if arguments.quick else FULL
        run(recipe, arguments.output, overwrite=arguments.overwrite, command=command_line())

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
