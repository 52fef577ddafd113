"""lbr-st on two CPU processes, also under FSDP2, which accelerate keeps for GPUs; run by test_launch.py.

With STOP_AT, the second process gets a SIGTERM at that step.
"""

import os
import signal
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from lbr_st import pipeline
from lbr_st.cli import main
from lbr_st.training.trainer import LBRTrainer

pipeline._plot = lambda work: None
if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

compute = LBRTrainer.compute_loss


def interrupted(self, *args, **kwargs):
    if os.environ["RANK"] == "1" and os.environ.get("STOP_AT") == str(self.state.global_step + 1):
        os.kill(os.getpid(), signal.SIGTERM)
    return compute(self, *args, **kwargs)


LBRTrainer.compute_loss = interrupted

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
