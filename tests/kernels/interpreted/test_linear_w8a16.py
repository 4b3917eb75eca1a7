"""Weights in int8, activations as they are: against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.kernels.gpu.linear_w8a16 import linear_w8a16
from trimtab.kernels.linear_w8a8 import quantize_weight
from trimtab.kernels.linear_w8a16 import linear_w8a16_reference

from .cases import DTYPES, OUTS, ROWS, SEEDS, SIZES, SPLITS, assert_close, config, random_input, random_weight, strided


@settings(max_examples=20, deadline=None)
@given(
    rows=ROWS, out=OUTS, size=SIZES, split=SPLITS, seed=SEEDS, dtype=DTYPES, bias=st.booleans(), how=st.integers(0, 2)
)
@example(rows=1, out=131, size=641, split=4, seed=0, dtype=torch.bfloat16, bias=True, how=2)
@example(rows=0, out=7, size=31, split=1, seed=0, dtype=torch.float16, bias=False, how=0)
def test_product(
    rows: int, out: int, size: int, split: int, seed: int, dtype: torch.dtype, bias: bool, how: int
) -> None:
    x = random_input(rows, size, seed, dtype)
    weight, scale = quantize_weight(random_weight(out, size, seed))
    shift = torch.randn(out, generator=torch.Generator().manual_seed(seed)).to(dtype) if bias else None
    y = linear_w8a16(strided(x, how), weight, scale, shift, config(rows, split))
    assert y.dtype == dtype
    assert y.shape == (rows, out)
    magnitude = linear_w8a16_reference(x.abs(), weight.abs(), scale, None if shift is None else shift.abs())
    assert_close(y, linear_w8a16_reference(x, weight, scale, shift), magnitude, size)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_integers_come_out_exactly(split: int) -> None:
    """Sums below 2**24 are exact in float32, whatever their order."""
    source = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (5, 300), generator=source).float()
    weight = torch.randint(-128, 128, (70, 300), generator=source, dtype=torch.int8)
    assert torch.equal(linear_w8a16(x, weight, torch.ones(70), None, config(5, split)), x @ weight.float().T)


def test_split_is_deterministic() -> None:
    """The same bits twice, from a workspace that the first call has used."""
    x, (weight, scale) = torch.randn(3, 512), quantize_weight(torch.randn(64, 512))
    first = linear_w8a16(x, weight, scale, None, config(3, 4))
    assert torch.equal(first, linear_w8a16(x, weight, scale, None, config(3, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inf_and_nan(dtype: torch.dtype) -> None:
    """As in torch's product with the dequantised weights, and in no other token."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(4, 70, generator=source).to(dtype)
    weight, scale = quantize_weight(torch.randn(20, 70, generator=source))
    x[1, 3], x[2, 69], x[3, 5], x[3, 6] = torch.inf, torch.nan, torch.inf, -torch.inf
    y, expected = linear_w8a16(x, weight, scale, None, config(4, 2)), linear_w8a16_reference(x, weight, scale)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.double()[y.isinf()], expected[expected.isinf()])
    assert y[0].isfinite().all()
