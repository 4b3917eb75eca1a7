"""The search for alpha: the objective that it reaches against float64 on a grid of the whole range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.kernels.fusion_alpha import NEWTON_STEPS, PRECISION
from trimtab.kernels.gpu import fusion_alpha as gpu

from .cases import SEEDS

GRID = torch.linspace(0, 2, 2001, dtype=torch.float64)


def cases(rows: int, experts: int, vocab: int, spread: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    large = 3 * torch.randn(rows, vocab, generator=source)
    base = large + spread * torch.randn(rows, vocab, generator=source)
    return large, base, base + spread * torch.randn(experts, rows, vocab, generator=source)


def kl(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a > -torch.inf, a.exp() * (a - b), 0.0).sum(-1)


def targets(base: Tensor, experts: Tensor) -> Tensor:
    """KL(Q_t||Q) and KL(Q||Q_t) in float64, `[experts, 2]`; of the row's allowed tokens alone."""
    q, e = base.double().log_softmax(-1), experts.double().log_softmax(-1)
    return torch.stack([kl(e, q), kl(q.expand_as(e), e)], -1)


def objective(large: Tensor, base: Tensor, expert: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    """The sum that alpha minimises, in float64 at each of `alpha`, `[points]`."""
    p, q, e = (x.double().log_softmax(-1) for x in (large, base, expert))
    fused = (p + alpha[:, None] * (e - q)).log_softmax(-1)
    both = torch.stack([kl(fused, p), kl(p.expand_as(fused), fused)], -1)
    return (both[:, None] - target).square().sum((1, 2))


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(0, 2), experts=st.integers(1, 3), vocab=st.sampled_from([2, 3, 17, 97, 1030, 2500]),
    spread=st.sampled_from([0.1, 1.0, 3.0]), excluded=st.sampled_from([0.0, 0.3]), seed=SEEDS,
)  # fmt: skip
@example(rows=40, experts=1, vocab=3, spread=3.0, excluded=0.0, seed=0)
def test_search(rows: int, experts: int, vocab: int, spread: float, excluded: float, seed: int) -> None:
    """Targets to float32; the objective no more than 1e-4 above the best of 2,001 alphas."""
    large, base, expert = cases(rows, experts, vocab, spread, seed)
    large[:, 1:][torch.rand(rows, vocab - 1, generator=torch.Generator().manual_seed(seed)) < excluded] = -torch.inf
    alpha, _, converged, target = gpu.fusion_alpha(large, base, expert, 2.0, PRECISION, NEWTON_STEPS)
    assert converged.all()
    assert ((alpha >= 0) & (alpha <= 2)).all()
    for row in range(rows):
        keep = large[row] > -torch.inf
        p, q, e = large[row, keep], base[row, keep], expert[:, row, keep]
        exact = targets(q, e)
        torch.testing.assert_close(target[row].double(), exact, rtol=1e-4, atol=1e-5)
        for index in range(experts):
            reached = objective(p, q, e[index], exact, alpha[row, index, None].double())
            assert reached <= objective(p, q, e[index], exact, GRID).amin() + 1e-4


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
