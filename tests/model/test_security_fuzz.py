"""Whatever a text is, a released model gives it one unit vector of finite numbers, alone as in a batch."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from lbr_st.model.build import build_model
from lbr_st.publish.stock import release

SPECIAL = ["<|lbr_0|>", "<|lbr_3|>", "<s>", "</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
PLAIN = ["an acid of a salt", "x"]
LONG = 1_000_000

pieces = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp"]), max_size=20),
    st.text(st.characters(min_codepoint=0x0590, max_codepoint=0x08FF), max_size=40),  # right to left
    st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF), max_size=20),  # emoji
    st.text(st.characters(min_codepoint=0x0300, max_codepoint=0x036F), max_size=40),  # marks without a letter
    st.sampled_from(
        [*SPECIAL, "👩‍👩‍👧‍👦🏽", "\u202e", "\ufeff", "\ufffe", "\U0010ffff", "\0", "", " ", "\r\n", "\u00a0\u3000"]
    ),
    st.tuples(st.sampled_from(["a", "é", "字", "\0", "🙂", "</s>", "\u0301"]), st.integers(1, 3000)).map(
        lambda drawn: drawn[0] * drawn[1]
    ),
)
texts = st.lists(pieces, max_size=5).map("".join)


def check(model, given):
    """Assert that texts get unit vectors, the same alone, together, and in another order."""
    together = model.encode(given, batch_size=len(given), show_progress_bar=False)
    assert together.shape == (len(given), model.get_embedding_dimension())
    assert np.isfinite(together).all()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([model.encode([text], show_progress_bar=False) for text in given])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    back = model.encode(given[::-1], batch_size=len(given), show_progress_bar=False)[::-1]
    np.testing.assert_allclose(back, together, atol=1e-5)


@pytest.fixture(scope="module")
def released(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "released"
    release(build_model(tiny_base("llama"), max_seq_length=32, lora_rank=2), folder)
    return SentenceTransformer(str(folder), device="cpu")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(given=["", " ", "\n\t", "\0", "\x1b[31m", "🙂", "שלום", "\u202eabc", "<|lbr_0|>", "</s>"])
@given(given=st.lists(texts, min_size=1, max_size=4))
def test_any_text_has_its_unit_vector(released, given):
    check(released, [*given, *PLAIN])


LETTERS = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), LONG))


@pytest.mark.parametrize("word", [LETTERS, "</s>" * (LONG // 4)], ids=["letters", "special tokens"])
def test_a_word_of_a_megabyte_takes_seconds(released, word):
    """All of its tokens are found before it is cut, in little more than linear time: about a second here."""
    start = time.perf_counter()
    together = released.encode([word, *PLAIN], show_progress_bar=False)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(released.encode(PLAIN, show_progress_bar=False), together[1:], atol=1e-5)
    # What is cut off does not matter: the model sees the same in the first hundredth.
    np.testing.assert_allclose(released.encode(word[: LONG // 100], show_progress_bar=False), together[0], atol=1e-5)
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("text", ["\ud800", "acid \udfff", "\ud83d\ud83d"])
def test_half_a_character_is_refused_by_the_tokenizer_itself(released, text):
    """UTF-8 has no form for a lone surrogate: the Rust tokenizer fails at once and never gives a wrong vector."""
    for together in ([text], ["an acid", text]):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            released.encode(together, show_progress_bar=False)
    fixed = text.encode("utf-8", "replace").decode()  # what docs/SECURITY.md advises
    check(released, [fixed, *PLAIN])
