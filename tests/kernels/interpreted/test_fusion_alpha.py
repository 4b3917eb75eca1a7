"""The search for alpha: against the same search in float64, and against a fine grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.kernels.fusion_alpha import NEWTON_STEPS, PRECISION, fusion_alpha_reference
from trimtab.kernels.gpu import fusion_alpha as gpu

from .cases import SEEDS


def cases(rows: int, experts: int, vocab: int, spread: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    large = 3 * torch.randn(rows, vocab, generator=source)
    base = large + spread * torch.randn(rows, vocab, generator=source)
    return large, base, base + spread * torch.randn(experts, rows, vocab, generator=source)


@settings(max_examples=8, deadline=None)
@given(
    rows=st.integers(0, 2), experts=st.integers(1, 3), vocab=st.sampled_from([97, 2048, 2500]),
    spread=st.sampled_from([0.1, 1.0, 3.0]), excluded=st.sampled_from([0.0, 0.3]), seed=SEEDS,
)  # fmt: skip
def test_search(rows: int, experts: int, vocab: int, spread: float, excluded: float, seed: int) -> None:
    """Targets to float32; the distance reached is no worse than that of the float64 search.

    Vocabularies of a hundred tokens and more: with two, one of them near certain, a cell of the grid can hold two
    minima, and the search ends in one of them in float64 too.
    """
    large, base, expert = cases(rows, experts, vocab, spread, seed)
    large[:, 1:][torch.rand(rows, vocab - 1, generator=torch.Generator().manual_seed(seed)) < excluded] = -torch.inf
    alpha, distance, converged, target = gpu.fusion_alpha(large, base, expert, 2.0, PRECISION, NEWTON_STEPS)
    _, best, _, exact = fusion_alpha_reference(large.double(), base.double(), expert.double(), 2.0, PRECISION)
    assert converged.all()
    assert ((alpha >= 0) & (alpha <= 2)).all()
    torch.testing.assert_close(target.double(), exact, rtol=1e-4, atol=1e-5)
    # float32 knows the divergences to about 1e-5 nats of their size
    size = exact.mean(1).square().sum(-1, keepdim=True)
    assert (distance.double() <= best * 1.01 + 1e-4 * size.clamp(min=1e-4)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_alphas(dtype: torch.dtype) -> None:
    """An expert that is its base has no strength to add; where large and base are one, alpha is 1."""
    large, _, experts = cases(2, 1, 500, 1.0, 0)
    large, experts = large.to(dtype), experts.to(dtype)
    same, _, converged, _ = gpu.fusion_alpha(large, large, experts, 2.0, PRECISION, NEWTON_STEPS)
    assert converged.all()
    torch.testing.assert_close(same, torch.ones(2, 1), rtol=0, atol=1e-3)
    _, _, _, target = gpu.fusion_alpha(large, experts[0], experts, 2.0, PRECISION, NEWTON_STEPS)
    torch.testing.assert_close(target, torch.zeros(2, 1, 2), rtol=0, atol=1e-5)
