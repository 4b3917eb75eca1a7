"""The int8 linear layer: integer part exact, error within what rounding to the format allows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.kernels.linear_w8a8 import (
    ActivationBits,
    _int8_matmul,
    linear_w8a8,
    linear_w8a8_reference,
    quantize_activation,
    quantize_weight,
)
from trimtab.kernels.native import linear as native

LEVELS = {8: 127, 16: 127 * 256}
ROWS = st.integers(0, 9)
SIZES = st.sampled_from([2, 3, 5, 7, 8, 13, 16, 31, 64, 97, 128, 257])
OUTS = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 61, 128])
BITS: st.SearchStrategy[ActivationBits] = st.sampled_from([8, 16])
SEEDS = st.integers(0, 2**32)
Linear = Callable[..., Tensor]


def torch_operators(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, bits: ActivationBits = 16
) -> Tensor:
    """`linear_w8a8` where there is no compiler."""
    with mock.patch.object(native, "available", return_value=False):
        return linear_w8a8(x, weight, scale, bias, bits=bits)


both = pytest.mark.parametrize(
    "linear",
    [
        pytest.param(
            linear_w8a8,
            id="native",
            marks=pytest.mark.skipif(not native.available(), reason="no native kernels on this machine"),
        ),
        pytest.param(torch_operators, id="torch"),
    ],
)


def error_bound(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: ActivationBits) -> Tensor:
    """What `linear_w8a8` may differ by from exact activations, `[tokens, out]` float64.

    With u = 2**-24 (float32), a = max|x| / levels and X the rounded levels:

    - rounding step: x / a is off by u * levels at most before it is rounded and by 1/2 after it, so
      |x - a X| <= a (1/2 + u levels), which a channel sees as a (1/2 + u levels) s sum|w|;
    - float32 after the exact sums: conversion of both sums, their sum and two products are 5 roundings, plus one for
      that of the scale `a`, of a value no larger than a s sum (|X| + 256) |w|, since |256 hi| <= |X| + 128 and
      |lo| <= 128; and one for the bias;
    - the result is rounded to the dtype of `x`, whose subnormals are equally spaced.
    """
    u = 2.0**-24
    levels = LEVELS[bits]
    step = x.double().abs().amax(1, keepdim=True).clamp(min=1e-30) / levels
    magnitude = weight.double().abs() * scale.double()[:, None]
    rounding = step * (0.5 + 2 * u * levels) * magnitude.sum(1)
    arithmetic = 6 * u * ((x.double().abs() + 257 * step) @ magnitude.T)
    reference = linear_w8a8_reference(x, weight, scale, bias).abs()
    biased = 0.0 if bias is None else u * (reference + bias.double().abs())
    info = torch.finfo(x.dtype)
    spacing = max(info.tiny * info.eps, 2.0**-149)
    bound = rounding + arithmetic + biased
    return 1.001 * bound + info.eps * (reference + bound) + 2 * spacing


def random_input(rows: int, size: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal rows, each of its own scale from 1e-20 to 1e20 (float16: 1e-4 to 1e3), about one in six zero."""
    source = torch.Generator().manual_seed(seed)
    low, high = (-4, 3) if dtype == torch.float16 else (-20, 20)
    exponent = torch.empty(rows, 1).uniform_(low, high, generator=source)
    x = torch.randn(rows, size, generator=source) * 10**exponent
    return torch.where(torch.rand(rows, 1, generator=source) < 1 / 6, 0.0, x).to(dtype)


def random_weight(out: int, size: int, seed: int) -> Tensor:
    """Normal channels, each of its own scale from 1e-20 to 1e20, about one in six zero."""
    source = torch.Generator().manual_seed(seed + 1)
    exponent = torch.empty(out, 1).uniform_(-20, 20, generator=source)
    weight = torch.randn(out, size, generator=source) * 10**exponent
    return torch.where(torch.rand(out, 1, generator=source) < 1 / 6, 0.0, weight)


def assert_within_bound(
    y: Tensor, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: ActivationBits
) -> None:
    """Shape, dtype, no nan, and the error bound wherever the exact result is representable."""
    assert y.shape == (len(x), len(weight))
    assert y.dtype == x.dtype
    assert not y.isnan().any()
    if len(x) == 0:
        return
    reference = linear_w8a8_reference(x, weight, scale, bias)
    bound = error_bound(x, weight, scale, bias, bits)
    representable = reference.abs() + bound < torch.finfo(x.dtype).max
    excess = ((y.double() - reference).abs() - bound)[representable]
    assert (excess <= 0).all(), f"error exceeds the bound by up to {excess.max():.3g}"


@settings(max_examples=120, deadline=None)
@given(rows=ROWS, size=SIZES, out=OUTS, seed=SEEDS, bits=BITS)
def test_integer_part_is_exact(rows: int, size: int, out: int, seed: int, bits: ActivationBits) -> None:
    """Planes times weights are the int64 products, and the planes put together are the rounded levels."""
    x = random_input(rows, size, seed, torch.float32)
    weight, _ = quantize_weight(random_weight(out, size, seed))
    planes, step = quantize_activation(x, bits)
    assert planes.dtype == torch.int8
    assert planes.shape == (rows * bits // 8, size)
    assert step.shape == (rows, 1)
    assert torch.equal(_int8_matmul(planes, weight).long(), planes.long() @ weight.long().T)
    levels = planes.long() if bits == 8 else 256 * planes[:rows].long() + planes[rows:].long()
    assert torch.equal(levels, (x / step).round().long())
    assert not levels.numel() or levels.abs().max() <= LEVELS[bits]


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("size", [3, 64, 4099, 20_000])
def test_accumulation_does_not_saturate(rows: int, size: int) -> None:
    """All products at their extremes, of either sign: sums up to 3e8 are exact."""
    for activation in (-128, 127):
        for level in (-127, 127):
            planes = torch.full((rows, size), activation, dtype=torch.int8)
            weight = torch.full((5, size), level, dtype=torch.int8)
            assert (_int8_matmul(planes, weight) == activation * level * size).all()


@both
@pytest.mark.parametrize("bits", [8, 16])
def test_integers_come_out_exactly(linear: Linear, bits: ActivationBits) -> None:
    """Inputs that are levels already, scales of 1, sums below 2**24: float32 adds no error at all."""
    source = torch.Generator().manual_seed(0)
    levels = LEVELS[bits]
    x = torch.randint(-levels, levels + 1, (50, 3), generator=source)
    x[:, 0] = levels
    weight = torch.randint(-127, 128, (11, 3), generator=source)
    weight[:, 1] = -127
    quantized, scale = quantize_weight(weight.float())
    assert torch.equal(quantized.long(), weight)
    assert torch.equal(scale, torch.ones(11))
    assert torch.equal(linear(x.float(), quantized, scale, bits=bits).long(), x @ weight.T)


@both
@settings(max_examples=250, deadline=None)
@given(
    rows=ROWS,
    size=SIZES,
    out=OUTS,
    seed=SEEDS,
    bits=BITS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    with_bias=st.booleans(),
)
@example(rows=0, size=7, out=5, seed=0, bits=16, dtype=torch.float32, with_bias=True)
@example(rows=1, size=257, out=1, seed=0, bits=16, dtype=torch.bfloat16, with_bias=False)
def test_error_is_within_the_rounding_bound(
    linear: Linear, rows: int, size: int, out: int, seed: int, bits: ActivationBits, dtype: torch.dtype, with_bias: bool
) -> None:
    """Any shape, dtype and scale, zero rows and channels, with and without bias."""
    x = random_input(rows, size, seed, dtype)
    weight, scale = quantize_weight(random_weight(out, size, seed))
    bias = torch.randn(out, generator=torch.Generator().manual_seed(seed)) if with_bias else None
    assert_within_bound(linear(x, weight, scale, bias, bits=bits), x, weight, scale, bias, bits)


@both
def test_bound_tells_16_bits_from_8(linear: Linear) -> None:
    """The bound has power: 8-bit activations violate that of 16 bits, and come within a factor of 20 of their own."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(20, 97, generator=source)
    weight, scale = quantize_weight(torch.randn(31, 97, generator=source))
    error = (linear(x, weight, scale, bits=8).double() - linear_w8a8_reference(x, weight, scale)).abs()
    assert (error > error_bound(x, weight, scale, None, 16)).double().mean() > 0.5
    assert error.max() > error_bound(x, weight, scale, None, 8).max() / 20


@both
@pytest.mark.parametrize("bits", [8, 16])
def test_zero_rows_give_the_bias(linear: Linear, bits: ActivationBits) -> None:
    """A token of zeros has no scale of its own: the product is exactly 0, next to rows that are not."""
    source = torch.Generator().manual_seed(0)
    weight, scale = quantize_weight(torch.randn(13, 31, generator=source))
    x = torch.randn(4, 31, generator=source)
    x[1] = x[3] = 0.0
    bias = torch.randn(13, generator=source)
    assert (linear(x, weight, scale, bits=bits)[[1, 3]] == 0).all()
    assert torch.equal(linear(x, weight, scale, bias, bits=bits)[[1, 3]], bias.expand(2, -1))


@both
@pytest.mark.parametrize("bits", [8, 16])
def test_tokens_do_not_affect_each_other(linear: Linear, bits: ActivationBits) -> None:
    """A row gives the same result alone and in a batch with a row 1e20 times larger."""
    source = torch.Generator().manual_seed(0)
    weight, scale = quantize_weight(torch.randn(16, 64, generator=source))
    x = torch.randn(18, 64, generator=source)
    x[0] *= 1e20
    together = linear(x, weight, scale, bits=bits)
    for row in (0, 1, 17):
        assert torch.equal(linear(x[row : row + 1], weight, scale, bits=bits)[0], together[row])


@both
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strided_input(linear: Linear, bits: ActivationBits, dtype: torch.dtype) -> None:
    """Every other column, a slice of columns, every other row, one row for all: as their contiguous copies."""
    base = random_input(12, 194, 0, dtype)
    weight, scale = quantize_weight(torch.randn(13, 97, generator=torch.Generator().manual_seed(0)))
    for x in (base[:, ::2], base[:, 50:147], base[::2, :97], base[:1, :97].expand(6, -1), base[:, :1].expand(-1, 97)):
        assert torch.equal(linear(x, weight, scale, bits=bits), linear(x.contiguous(), weight, scale, bits=bits))


@both
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_transposed_input(linear: Linear, bits: ActivationBits, rows: int) -> None:
    """Features first in memory, one row too: as the contiguous copy."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(64, rows, generator=source).t()
    weight, scale = quantize_weight(torch.randn(13, 64, generator=source))
    copy = x.clone(memory_format=torch.contiguous_format).reshape(-1).view(rows, 64)
    assert torch.equal(linear(x, weight, scale, bits=bits), linear(copy, weight, scale, bits=bits))


@both
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("out", [1, 2, 16])
def test_one_input_channel(linear: Linear, bits: ActivationBits, rows: int, out: int) -> None:
    """A size of 1 has no meaningful strides; the product is within the bound all the same."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 1, generator=source)
    weight, scale = quantize_weight(torch.randn(out, 1, generator=source))
    assert_within_bound(linear(x, weight, scale, bits=bits), x, weight, scale, None, bits)


def test_processor_without_vnni() -> None:
    """Torch's operators without int8 dot products (oneDNN told to use AVX2): sums are exact all the same."""
    program = (
        "import torch\n"
        "from trimtab.kernels.linear_w8a8 import linear_w8a8, linear_w8a8_reference, quantize_weight\n"
        "source = torch.Generator().manual_seed(0)\n"
        "weight, scale = quantize_weight(torch.randn(192, 576, generator=source))\n"
        "x = torch.randn(8, 576, generator=source)\n"
        "reference = linear_w8a8_reference(x, weight, scale)\n"
        "print(float((linear_w8a8(x, weight, scale) - reference).abs().max() / reference.abs().max()))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "TRIMTAB_NATIVE": "0",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert float(result.stdout) < 1e-3


@settings(max_examples=120, deadline=None)
@given(size=st.integers(1, 130), out=st.integers(1, 30), seed=SEEDS)
def test_weight_error_is_half_a_step(size: int, out: int, seed: int) -> None:
    """|w - s q| <= s / 2 up to float32; the largest weight of a channel is at +-127; nothing beyond."""
    original = random_weight(out, size, seed)
    weight, scale = quantize_weight(original)
    assert (weight.dtype, weight.shape) == (torch.int8, original.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (out,))
    step = scale.double()[:, None]
    error = (original.double() - step * weight.double()).abs()
    assert (error <= step * (0.5 + 2 * 127 * 2.0**-24)).all()
    used = original.abs().amax(1) > 0
    assert (weight[used].long().abs().amax(1) == 127).all()


def test_zero_channels_have_scale_1() -> None:
    """An all-zero channel stays zero, with a scale that cannot make nan; its neighbours are not affected."""
    original = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    original[2] = 0.0
    weight, scale = quantize_weight(original)
    assert scale[2] == 1
    assert (weight[2] == 0).all()
    alone, alone_scale = quantize_weight(original[:2])
    assert torch.equal(weight[:2], alone)
    assert torch.equal(scale[:2], alone_scale)
    assert (linear_w8a8(torch.randn(3, 9), weight, scale)[:, 2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weight_of_any_float_dtype(dtype: torch.dtype) -> None:
    """Quantised as its float32 value."""
    original = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    for got, expected in zip(quantize_weight(original), quantize_weight(original.float()), strict=True):
        assert torch.equal(got, expected)
