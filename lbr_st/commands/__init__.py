"""The commands of ``lbr-st`` by name, in the order of the help."""

from __future__ import annotations

from lbr_st.commands.command import Command
from lbr_st.commands.evaluate import EVALUATE
from lbr_st.commands.stages import STAGES

COMMANDS: dict[str, Command] = {
    **STAGES,
    "evaluate": EVALUATE,
}

__all__ = ["COMMANDS", "Command"]
