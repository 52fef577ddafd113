"""What a script in ``recipes/`` is beside its recipe: the quick form, the flags, the run, and the exit status."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from lbr_st.commands.command import command_line
from lbr_st.commands.exit_status import exit_status
from lbr_st.recipe import EvaluateConfig, LearnConfig, Recipe, RepresentConfig


def quick_form(full: Recipe, *, max_seq_length: int, learn_batch_size: int) -> Recipe:
    """Return a recipe's quick form: the same machine on its main source, in minutes on two CPU cores.

    Args:
        full: The recipe. It is not changed.
        max_seq_length: Longest text in tokens; with ``learn_batch_size``, what decides how many minutes.
        learn_batch_size: Pairs in a step of stage 1.
    """
    return Recipe(
        name=f"{full.name}-quick",
        seed=full.seed,
        model=replace(full.model, max_seq_length=max_seq_length, lora_rank=8, lora_alpha=16),
        data=replace(full.data, also=[], synonyms=False),
        # No context loss, to save time: its logits span the whole vocabulary at every position.
        learn=LearnConfig(
            max_steps=12,
            batch_size=learn_batch_size,
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


def recipe_script(text: str | None, full: Recipe, quick: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Run the quick or the full recipe, as the command line says, and return the exit status.

    Args:
        text: The script's docstring, shown by ``--help``.
        full: What is trained where there is a GPU, or time.
        quick: Its :func:`quick_form`, or another; chosen by ``--quick``.
        arguments: The command line; None for this process's.
    """
    name = full.name
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run that ends in minutes on two CPU cores")
    parser.add_argument("--output", default=name, help=f"folder of the released model (default: {name})")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(arguments)

    def work() -> None:
        from lbr_st.pipeline import run

        run(quick if given.quick else full, given.output, overwrite=given.overwrite, command=command_line())

    return exit_status(work, debug=given.debug)
