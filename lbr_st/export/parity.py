"""How near an export must come to the release it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lbr_st.errors import LBRError


@dataclass(frozen=True)
class Parity:
    """Cosines between an export's embeddings and the release's, of the same texts.

    Args:
        lowest: The lowest of them.
        mean: Their mean.
    """

    lowest: float
    mean: float


LEAST = {"float32": Parity(0.999, 0.999), "int8": Parity(0.9, 0.95)}
"""Precision → the lowest and the mean cosine an export must reach; below, nothing is written."""


def check(reference: np.ndarray, found: np.ndarray, precision: str, what: str) -> Parity:
    """Return how near two sets of embeddings are, row by row, and refuse what is too far off.

    Args:
        reference: The release's; shape (texts, dimension).
        found: What is to be checked; the same shape.
        precision: Of what is checked; decides the bound.
        what: Its name, for the error.

    Raises:
        LBRError: The shapes differ, a number is not finite, or a cosine is below :data:`LEAST`.
    """
    if reference.shape != found.shape:
        fix = "This is a defect of lbr-st or of the backend; please report it."
        raise LBRError(f"gives embeddings of shape {found.shape}, the release {reference.shape}.", where=what, fix=fix)
    if not np.isfinite(found).all():
        raise LBRError("gives embeddings that are not numbers; nothing was written.", where=what, fix=_FIX[precision])
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (reference * found).sum(axis=1) / np.maximum(lengths, 1e-12)
    parity, least = Parity(float(cosines.min()), float(cosines.mean())), LEAST[precision]
    if parity.lowest < least.lowest or parity.mean < least.mean:
        raise LBRError(
            f"differs from the release: lowest cosine {parity.lowest:.4f}, mean {parity.mean:.4f} over the probe "
            f"texts, where {least.lowest} and {least.mean} are required; nothing was written.",
            where=what,
            fix=_FIX[precision],
        )
    return parity


_FIX = {
    "float32": "The environment reads this model differently; leave --python out, or report it as a defect.",
    "int8": "Export it with --precision float32, or give --calibration texts of your domain.",
}
