import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def _what_is_imported_is_not_searched_for_garbage():
    """Each training begins with a full garbage collection (accelerate), which takes longer than the training."""
    import torch
    import transformers

    assert torch, transformers
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
