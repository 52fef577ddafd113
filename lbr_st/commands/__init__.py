"""The commands of ``lbr-st`` by name, in the order of the help."""

from __future__ import annotations

from lbr_st.commands.card import CARD
from lbr_st.commands.command import Command
from lbr_st.commands.compare import COMPARE
from lbr_st.commands.contamination import CHECK_CONTAMINATION
from lbr_st.commands.evaluate import EVALUATE
from lbr_st.commands.stages import STAGES

COMMANDS: dict[str, Command] = {
    **STAGES,
    "evaluate": EVALUATE,
    "compare": COMPARE,
    "check-contamination": CHECK_CONTAMINATION,
    "card": CARD,
}

__all__ = ["COMMANDS", "Command"]
