"""MAUVE by its authors' package, on the vectors of a sentence encoder."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from torch import Tensor

from ..integrations.transformers.optional import require

PACKAGE = "mauve-text"


def mauve(vectors: Tensor, reference: Tensor, *, seed: int = 0) -> float:
    """Area under the divergence curve of the two distributions (Pillutla et al. 2021, arXiv 2102.01454); 1 is best.

    The paper takes its vectors from GPT-2 large: figures on others are comparable with each other only.

    Args:
        vectors: `[texts, width]`; the package wants a few thousand, and the figure is rough below that.
        reference: `[real texts, width]`.
        seed: of the clustering.

    Returns:
        From 0 to 1.

    Raises:
        InputError: the package is not installed.
    """
    require("mauve", purpose="MAUVE", install=PACKAGE)
    import mauve as package

    with contextlib.redirect_stdout(io.StringIO()):  # the package prints what it does
        found: Any = package.compute_mauve(
            p_features=reference.double().numpy(), q_features=vectors.double().numpy(), seed=seed, verbose=False
        )
    return float(found.mauve)
