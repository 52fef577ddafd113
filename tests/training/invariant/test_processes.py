"""One process = two processes (gloo over loopback, DistributedDataParallel): the same global batches, losses, gradient
norms, weights and measurements, in both stages, with gathered negatives among which are explicit hard ones (Sentence
Transformers #3453: anchors were trained towards these). Both processes are left with the same weights.

What is trained is in ``two_processes.py``; both processes run all of it in one go.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trajectories import Trajectory, assert_same, distance
from two_processes import SCENARIOS

from lbr_st.model.build import build_model

KINDS = ["llama", "llama-untied", "bert"]
HELPERS = Path(__file__).parents[2] / "helpers"
UNGATHERED = "not gathered"
FAST = {"attention", "lora", "by tokens", "held out, gain", "gathered, lora, untied", "gathered in pieces", "taught"}


@pytest.fixture(scope="module")
def bases(tiny_base):
    return {kind: tiny_base(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def of_two(bases, tmp_path_factory, request):
    """Run the scenarios of the chosen tests in two processes; give the trajectories of both."""
    tests = [item for item in request.session.items if item.path == request.path]
    names = [item.callspec.params["name"] if hasattr(item, "callspec") else UNGATHERED for item in tests]
    folder = tmp_path_factory.mktemp("two")
    (folder / "bases").mkdir()
    (folder / "out").mkdir()
    for kind, base in bases.items():
        (folder / "bases" / kind).symlink_to(base)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *(str(HELPERS / "two_processes.py"), str(folder / "bases"), str(folder / "out"), *names),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return lambda name: [
        Trajectory(**torch.load(folder / "out" / f"{name}-{rank}.pt", weights_only=True)) for rank in range(2)
    ]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in SCENARIOS if name != UNGATHERED],
)
def test_two_processes_do_what_one_does(bases, of_two, tmp_path, name):
    first, second = of_two(name)
    assert first.logs == second.logs
    for key, weight in first.weights.items():
        assert torch.equal(second.weights[key], weight), key
    wanted = SCENARIOS[name](bases, tmp_path)
    if name == "held out, loss":
        # A mean over batches, and there are two of them now; the trajectory proper is compared below.
        for ours, theirs in zip(first.evaluations, wanted.evaluations, strict=True):
            assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=0.02)
        first.evaluations = wanted.evaluations
    assert bool(wanted.evaluations) == name.startswith("held out")
    assert_same(first, wanted)
    start = build_model(bases["llama"], num_bottleneck_tokens=2, max_seq_length=64, device="cpu").state_dict()
    moved = [(weight - start[key]).abs().max() for key, weight in wanted.weights.items() if key in start]
    assert not moved or max(moved) > 1e-4


@pytest.mark.slow
def test_without_gathering_there_are_fewer_negatives(bases, of_two, tmp_path):
    first, second = of_two(UNGATHERED)
    assert first.logs == second.logs
    wanted = SCENARIOS["gathered"](bases, tmp_path)
    assert distance(first, wanted) > 0.05
    assert (first.of("loss") < wanted.of("loss")).all()
