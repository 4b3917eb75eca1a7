"""Both paths against float64 numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.kernels import tilted_moments as module
from trimtab.kernels.native.build import library
from trimtab.kernels.tilted_moments import tilted_moments

PATHS = [
    pytest.param(module._torch, id="torch"),
    pytest.param(
        module._native,
        id="native",
        marks=pytest.mark.skipif(library() is None, reason="no native kernels on this machine"),
    ),
]
Moments = Callable[[Tensor, Tensor, Tensor], Tensor]


def exact(base: Tensor, push: Tensor, alpha: Tensor) -> npt.NDArray[np.float64]:
    x = push.double().numpy()[:, :, None]
    tilted = base.double().numpy()[:, None, None] + alpha.double().numpy()[..., None] * x
    top = tilted.max(-1, keepdims=True)
    weight = np.exp(tilted - top)
    total = weight.sum(-1, keepdims=True)
    weight /= total
    mean = (weight * x).sum(-1, keepdims=True)
    off = x - mean
    return np.stack(
        [
            (np.log(total) + top)[..., 0],
            mean[..., 0],
            (weight * off**2).sum(-1),
            (weight * off**3).sum(-1),
        ],
        -1,
    )


def case(seed: int, vocab: int, scale: float, rows: int = 2, directions: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = 3 * torch.randn(rows, vocab, generator=generator) + 10
    push = scale * torch.randn(rows, directions, vocab, generator=generator)
    return base, push, 2 * torch.rand(rows, directions, 4, generator=generator)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.sampled_from([1, 2, 15, 16, 17, 97, 1023, 1025, 4100]),
    scale=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    forbidden=st.floats(0, 0.9),
)
def test_moments_are_those_of_float64(path: Moments, seed: int, vocab: int, scale: float, forbidden: float) -> None:
    base, push, alpha = case(seed, vocab, scale)
    gone = torch.rand(base.shape, generator=torch.Generator().manual_seed(seed)) < forbidden
    gone[:, 0] = False
    base = base.masked_fill(gone, -torch.inf)
    found, expected = path(base, push, alpha).numpy(), exact(base, push, alpha)
    # central moments are differences of raw ones, and as exact as those
    size = push.abs().max().item()
    for power in range(4):
        np.testing.assert_allclose(found[..., power], expected[..., power], rtol=1e-5, atol=3e-6 * (5 + size**power))


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_vocabulary(path: Moments) -> None:
    base, push, alpha = case(0, 151_937, 1.0, rows=1, directions=2)
    np.testing.assert_allclose(path(base, push, alpha).numpy(), exact(base, push, alpha), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("path", PATHS)
def test_scores_of_any_size_neither_overflow_nor_vanish(path: Moments) -> None:
    base, push, alpha = case(1, 200, 1.0)
    for shift in (-1000.0, 1000.0):
        np.testing.assert_allclose(path(base + shift, push, alpha).numpy(), exact(base + shift, push, alpha), atol=1e-3)
    far = 100 * push
    assert path(base, far, alpha).isfinite().all()


def test_layouts_that_are_not_contiguous_are_read_right() -> None:
    base, push, alpha = case(2, 100, 1.0)
    found = tilted_moments(base[:, :90], push.transpose(0, 1).contiguous().transpose(0, 1)[..., :90], alpha)
    torch.testing.assert_close(found, tilted_moments(base[:, :90].clone(), push[..., :90].clone(), alpha))


def test_one_alpha_for_all_may_be_a_view() -> None:
    base, push, _ = case(3, 64, 1.0)
    grid = torch.linspace(0, 2, 5)
    torch.testing.assert_close(
        tilted_moments(base, push, grid.expand(2, 3, 5)),
        module._torch(base, push, grid.repeat(2, 3, 1)),
        atol=1e-4,
        rtol=1e-4,
    )
