"""The commands of ``lbr-st`` by name, in the order of the help."""

from __future__ import annotations

from lbr_st.commands.bundle import BUILD, BUNDLE, PACK
from lbr_st.commands.card import CARD
from lbr_st.commands.command import Command
from lbr_st.commands.compare import COMPARE
from lbr_st.commands.contamination import CHECK_CONTAMINATION
from lbr_st.commands.evaluate import EVALUATE
from lbr_st.commands.export import EXPORT
from lbr_st.commands.launch import LAUNCH_CONFIG
from lbr_st.commands.plot import PLOT
from lbr_st.commands.stages import STAGES
from lbr_st.commands.submission import SUBMISSION

COMMANDS: dict[str, Command] = {
    "build": BUILD,
    **STAGES,
    "launch-config": LAUNCH_CONFIG,
    "evaluate": EVALUATE,
    "compare": COMPARE,
    "plot": PLOT,
    "check-contamination": CHECK_CONTAMINATION,
    "card": CARD,
    "submission": SUBMISSION,
    "export": EXPORT,
    "bundle": BUNDLE,
    "pack": PACK,
}

__all__ = ["COMMANDS", "Command"]
