"""Which arithmetic, and how texts are encoded without padding where that is possible."""

import pytest
import torch

from lbr_st.compute import encoding_options


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_unpadded_only_where_flash_attention_can_run(monkeypatch, cuda, flash, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: flash)
    wanted = {"attn_implementation": "flash_attention_2"} if cuda and flash and precision == "bfloat16" else {}
    assert encoding_options(precision) == wanted


def test_the_options_reach_the_model(monkeypatch, tiny_base, tmp_path):
    import lbr_st
    from lbr_st.model import load

    released = str(lbr_st.release(lbr_st.build_model(tiny_base("llama"), device="cpu"), tmp_path / "released"))
    monkeypatch.setattr(load, "encoding_options", lambda precision: {"attn_implementation": precision})
    loaded, _, _ = load.load_by_name(released, "eager")
    assert loaded[0].model.config._attn_implementation == "eager"
