"""Shapes, inputs and error bounds for the kernels."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from trimtab.kernels.tuning import Config

ROWS = st.sampled_from([0, 1, 2, 3, 5, 8, 16, 17, 31, 40])
OUTS = st.sampled_from([1, 2, 7, 13, 31, 64, 97, 131])
SIZES = st.sampled_from([1, 2, 7, 31, 64, 97, 128, 257, 320])
SPLITS = st.sampled_from([1, 2, 3, 4])
SEEDS = st.integers(0, 2**32)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def config(rows: int, split: int, block_k: int = 64) -> Config:
    """Small tiles, so that few channels make several of them."""
    return Config(16 if rows <= 16 else 32, 64, block_k, split)


def random_input(rows: int, size: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal rows, each of its own scale from 1e-18 to 1e18 (float16: 1e-3 to 1e2), about one in six zero."""
    source = torch.Generator().manual_seed(seed)
    low, high = (-3, 2) if dtype == torch.float16 else (-18, 18)
    exponent = torch.empty(rows, 1).uniform_(low, high, generator=source)
    x = torch.randn(rows, size, generator=source) * 10**exponent
    return torch.where(torch.rand(rows, 1, generator=source) < 1 / 6, 0.0, x).to(dtype)


def random_weight(out: int, size: int, seed: int) -> Tensor:
    """Normal channels, each of its own scale from 1e-6 to 1, about one in six zero."""
    source = torch.Generator().manual_seed(seed + 1)
    exponent = torch.empty(out, 1).uniform_(-6, 0, generator=source)
    weight = torch.randn(out, size, generator=source) * 10**exponent
    return torch.where(torch.rand(out, 1, generator=source) < 1 / 6, 0.0, weight)


def assert_close(y: Tensor, reference: Tensor, magnitude: Tensor, size: int) -> None:
    """`y` is the float64 `reference` but for float32 sums and one rounding to its dtype.

    Sums of `size` products whose absolute values add up to `magnitude` err by (size + 8) u of it, in any order; the 8
    are for scales, zero points and bias. The interpreter cuts bfloat16 off where a GPU rounds it, hence a whole eps.
    """
    info = torch.finfo(y.dtype)
    error = (size + 8) * 2.0**-24 * magnitude
    bound = error + info.eps * (reference.abs() + error) + 2 * max(info.tiny * info.eps, 2.0**-149)
    representable = reference.abs() + bound < info.max
    excess = ((y.double() - reference).abs() - bound)[representable]
    assert not y[representable].isnan().any()
    assert (excess <= 0).all(), f"error exceeds the bound by up to {excess.max():.3g}"


def strided(x: Tensor, how: int) -> Tensor:
    """The same numbers: as they are, with rows further apart, or transposed in memory."""
    if how == 1:
        wide = x.new_full((x.shape[0], x.shape[1] + 5), torch.nan)
        wide[:, 2 : 2 + x.shape[1]] = x
        return wide[:, 2 : 2 + x.shape[1]]
    return x.t().contiguous().t() if how == 2 else x
