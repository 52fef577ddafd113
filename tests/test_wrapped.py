"""A computation as the forward pass of a wrapped model: the wrapper sees it, and the model is as before."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lbr_st.compute import in_forward_of, unwrapped


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args):
        self.calls += 1
        return self.module(*args)


@pytest.fixture
def model():
    return nn.Linear(2, 1)


def test_the_wrapper_is_called_and_the_model_is_as_before(model):
    outer = Wrapper(Wrapper(model))
    inputs = torch.ones(3, 2)

    def twice(x):
        return {"out": 2 * model(x)}  # its own forward is there again

    assert torch.equal(in_forward_of(outer, twice, inputs)["out"], 2 * model(inputs))
    assert (outer.calls, outer.module.calls) == (1, 1)
    assert "forward" not in model.__dict__
    assert torch.equal(in_forward_of(model, twice, inputs)["out"], 2 * model(inputs))
    assert torch.equal(outer(inputs), model(inputs))


def test_an_error_leaves_the_model_as_it_was(model):
    patched = model.__dict__["forward"] = lambda x: x + 1  # as accelerate does under autocast

    def fails(x):
        assert torch.equal(model(x), x + 1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        in_forward_of(Wrapper(model), fails, torch.ones(1))
    assert model.__dict__["forward"] is patched


def test_a_wrapper_that_fails_first_leaves_the_model_as_it_was(model):
    class Refuses(Wrapper):
        def forward(self, *args):
            raise RuntimeError("not now")

    with pytest.raises(RuntimeError, match="not now"):
        in_forward_of(Refuses(model), model)
    assert "forward" not in model.__dict__


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_gradients_are_reduced_and_measurements_wait_for_nobody(model, one_process, monkeypatch):
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)
    reduced = []
    wrapper.register_comm_hook(None, lambda _, bucket: reduced.append(bucket.buffer().clone()) or _done(bucket))
    in_forward_of(wrapper, lambda x: (x @ model.weight.t()).sum(), torch.ones(3, 2)).backward()
    # The weight is used past the model's own forward, the bias not at all.
    assert sorted(torch.cat(reduced).tolist()) == [0, 3, 3]

    def never(*args):
        raise AssertionError("waits for other processes")

    monkeypatch.setattr(DistributedDataParallel, "forward", never)
    with torch.no_grad():
        assert in_forward_of(wrapper, lambda x: x.sum(), torch.ones(3)) == 3


def test_copies_on_several_gpus_are_not_run(model, monkeypatch):
    def never(*args):
        raise AssertionError("runs copies")

    monkeypatch.setattr(nn.DataParallel, "forward", never)
    in_forward_of(nn.DataParallel(model), lambda x: model(x).sum(), torch.ones(3, 2)).backward()
    assert model.weight.grad.tolist() == [[3, 3]]


def _done(bucket):
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_wrappers_are_seen_through(model):
    assert unwrapped(model) is model
    assert unwrapped(Wrapper(Wrapper(model))) is model
    assert unwrapped(Wrapper(torch.compile(model))) is model
