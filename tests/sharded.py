"""lbr-st under FSDP2 on two CPU processes, which accelerate keeps for GPUs though torch can; run by test_launch.py."""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from lbr_st import pipeline
from lbr_st.cli import main

PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
pipeline._plot = lambda work: None

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
