"""How computing is spread: precision, encoding without padding, a computation as a wrapped model's forward pass."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lbr_st
from lbr_st import compute
from lbr_st.compute import encoding_options, in_forward_of, product_seconds, unwrapped, use_bfloat16
from lbr_st.errors import LBRError
from lbr_st.model import load


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

    class Refuses(Wrapper):
        def forward(self, *args):
            raise ValueError("broken")

    for wrapper in (Wrapper, Refuses):  # in the computation, and before it
        with pytest.raises(ValueError, match="broken"):
            in_forward_of(wrapper(model), fails, torch.ones(1))
        assert model.__dict__["forward"] is patched


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def never(*args):
    raise AssertionError("waits for other processes, or runs copies")


def test_gradients_are_reduced_and_measurements_wait_for_nobody(model, one_process, monkeypatch):
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)
    reduced = []
    wrapper.register_comm_hook(None, lambda _, bucket: reduced.append(bucket.buffer().clone()) or _done(bucket))
    in_forward_of(wrapper, lambda x: (x @ model.weight.t()).sum(), torch.ones(3, 2)).backward()
    # The weight is used past the model's own forward, the bias not at all.
    assert sorted(torch.cat(reduced).tolist()) == [0, 3, 3]

    monkeypatch.setattr(DistributedDataParallel, "forward", never)
    with torch.no_grad():
        assert in_forward_of(wrapper, lambda x: x.sum(), torch.ones(3)) == 3


def test_copies_on_several_gpus_are_not_run(model, monkeypatch):
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


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_unpadded_only_where_flash_attention_can_run(monkeypatch, cuda, flash, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: flash)
    wanted = {"attn_implementation": "flash_attention_2"} if cuda and flash and precision == "bfloat16" else {}
    assert encoding_options(precision) == wanted


def test_the_options_reach_the_model(monkeypatch, tiny_base, tmp_path):
    released = str(lbr_st.release(lbr_st.build_model(tiny_base("llama"), device="cpu"), tmp_path / "released"))
    monkeypatch.setattr(load, "encoding_options", lambda precision: {"attn_implementation": precision})
    loaded, _, _ = load.load_by_name(released, "eager")
    assert loaded[0].model.config._attn_implementation == "eager"


CPU = torch.device("cpu")


@pytest.fixture
def asked(monkeypatch):
    """Make bfloat16 the faster one for wide layers only; return the shapes that were timed."""
    shapes = []

    def seconds(outputs, inputs):
        shapes.append((outputs, inputs))
        return (2.0, 1.0) if outputs > 50 else (1.0, 2.0)

    monkeypatch.setattr(compute, "product_seconds", seconds)
    return shapes


def test_auto_times_the_layers_own_shape(asked):
    wide = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8), nn.Linear(8, 64), nn.Linear(8, 999))
    narrow = nn.Sequential(nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 999))
    assert use_bfloat16("auto", CPU, wide)
    assert not use_bfloat16("auto", CPU, narrow)
    assert asked == [(64, 8), (16, 8)]


def test_what_is_asked_for_is_not_timed(asked):
    assert use_bfloat16("bfloat16", CPU)
    assert not use_bfloat16("float32", CPU)
    assert not asked
    with pytest.raises(LBRError, match="unknown precision 'half'"):
        use_bfloat16("half", CPU)


def test_a_product_is_timed_once():
    assert min(product_seconds(64, 32)) > 0
    assert product_seconds(64, 32) is product_seconds(64, 32)
