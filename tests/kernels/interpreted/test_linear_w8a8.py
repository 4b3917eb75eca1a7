"""Weights and activations in int8: the integer part exactly, the rest against the CPU path."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.kernels.gpu import linear_w8a8 as gpu
from trimtab.kernels.linear_w8a8 import ActivationBits, linear_w8a8, quantize_activation, quantize_weight

from .cases import DTYPES, OUTS, ROWS, SEEDS, SIZES, SPLITS, assert_close, config, random_input, random_weight, strided

BITS: st.SearchStrategy[ActivationBits] = st.sampled_from([8, 16])


@settings(max_examples=12, deadline=None)
@given(rows=st.sampled_from([0, 1, 5]), size=st.sampled_from([1, 31, 257, 4099]), seed=SEEDS, dtype=DTYPES, bits=BITS)
def test_activations_are_rounded_as_on_the_cpu(
    rows: int, size: int, seed: int, dtype: torch.dtype, bits: ActivationBits
) -> None:
    """The same planes and steps, to the bit."""
    x = random_input(rows, size, seed, dtype)
    for got, expected in zip(gpu.quantize_activation(x, bits), quantize_activation(x, bits), strict=True):
        assert torch.equal(got, expected)


@settings(max_examples=20, deadline=None)
@given(
    rows=ROWS, out=OUTS, size=SIZES, split=SPLITS, seed=SEEDS, dtype=DTYPES, bits=BITS, bias=st.booleans(),
    how=st.integers(0, 2),
)  # fmt: skip
@example(rows=1, out=131, size=641, split=4, seed=0, dtype=torch.bfloat16, bits=16, bias=True, how=2)
@example(rows=0, out=7, size=31, split=1, seed=0, dtype=torch.float16, bits=8, bias=False, how=0)
def test_product(
    rows: int, out: int, size: int, split: int, seed: int, dtype: torch.dtype, bits: ActivationBits, bias: bool,
    how: int,
) -> None:  # fmt: skip
    """The int64 product of the planes, times the scales: float32 errs by 6 roundings, of either plane's sum."""
    x = random_input(rows, size, seed, dtype)
    weight, scale = quantize_weight(random_weight(out, size, seed))
    shift = torch.randn(out, generator=torch.Generator().manual_seed(seed)).to(dtype) if bias else None
    y = gpu.linear_w8a8(strided(x, how), weight, scale, shift, bits, config(rows, split))
    assert y.dtype == dtype
    assert y.shape == (rows, out)
    planes, step = quantize_activation(x, bits)
    sums = planes.long() @ weight.long().T
    if bits == 16:
        sums, parts = 256 * sums[:rows] + sums[rows:], 256 * sums[:rows].abs() + sums[rows:].abs()
    else:
        parts = sums.abs()
    factor = step.double() * scale.double()
    added = 0.0 if shift is None else shift.double()
    magnitude = parts * factor + (0.0 if shift is None else shift.double().abs())
    assert_close(y, sums * factor + added, magnitude, 0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("split", [1, 2])
def test_sums_do_not_saturate(bits: ActivationBits, split: int) -> None:
    """All products at their extremes: exact up to 2**24, to a part in 2**24 beyond."""
    x = torch.full((2, 4099), 3.0)
    x[1] = -3.0
    weight = torch.full((70, 4099), -127, dtype=torch.int8)
    y = gpu.linear_w8a8(x, weight, torch.ones(70), None, bits, config(2, split))
    expected = x.double() @ weight.double().T
    assert ((y - expected).abs() <= 2.0**-21 * expected.abs()).all()


def test_same_as_on_the_cpu() -> None:
    """Both paths are one function."""
    source = torch.Generator().manual_seed(0)
    x, (weight, scale) = torch.randn(8, 576, generator=source), quantize_weight(torch.randn(192, 576, generator=source))
    y = gpu.linear_w8a8(x, weight, scale, None, 16, config(8, 2))
    torch.testing.assert_close(y, linear_w8a8(x, weight, scale), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_inf_and_nan(bits: ActivationBits, value: float) -> None:
    """Nan throughout the token, as on the CPU, and in no other."""
    x, (weight, scale) = torch.randn(3, 70), quantize_weight(torch.randn(20, 70))
    x[1, 3] = value
    for y in (
        gpu.linear_w8a8(x, weight, scale, None, bits, config(3, 2)),
        linear_w8a8(x, weight, scale, None, bits=bits),
    ):
        assert y[1].isnan().all()
        assert y[[0, 2]].isfinite().all()
