"""The 4-bit linear layer: the format's error, and torch's operator against the weights that the format stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.errors import InputError
from trimtab.kernels.linear_w4a16 import (
    GROUP,
    dequantize_weight,
    linear_w4a16,
    pack,
    pack_blocks,
    quantize_weight,
    quantize_weight_symmetric,
    unpack_blocks,
)
from trimtab.kernels.linear_w4a16 import GROUPS as FORMAT_GROUPS

U = 2.0**-8  # bfloat16 has 8 significant bits: relative rounding error
SEEDS = st.integers(0, 2**32)
GROUPS = st.integers(1, 7)
OUTS = st.sampled_from([1, 2, 3, 7, 15, 16, 17, 31, 32, 61, 64, 97])


def random_weight(out: int, size: int, seed: int) -> Tensor:
    """Normal channels of scales from 1e-10 to 1e10, some groups far from 0, about one channel in six zero."""
    source = torch.Generator().manual_seed(seed)
    exponent = torch.empty(out, 1).uniform_(-10, 10, generator=source)
    shift = 3 * torch.randn(out, size // GROUP, 1, generator=source).expand(-1, -1, GROUP).reshape(out, size)
    weight = (torch.randn(out, size, generator=source) + shift) * 10**exponent
    return torch.where(torch.rand(out, 1, generator=source) < 1 / 6, 0.0, weight)


def error_bound(x: Tensor, weight: Tensor) -> Tensor:
    """What `linear_w4a16` may differ by from `x @ dequantize_weight(...)`, `[tokens, out]` float64.

    With M the largest |w| of a group: |s (q - 8)| <= 16/15 M and |z| <= M, each rounded to bfloat16, as are w itself
    and x: together less than 5 U of sum |x| M. The sum is rounded to bfloat16 once, and to the dtype of `x` once.
    """
    out, size = weight.shape
    peak = weight.double().abs().view(out, size // GROUP, GROUP).amax(2).repeat_interleave(GROUP, 1)
    inner = 5 * U * (x.double().abs() @ peak.T)
    return inner + 2 * U * (inner + (x.double() @ weight.double().T).abs())


def assert_within_bound(x: Tensor, weight: Tensor) -> None:
    """Pack `weight`, multiply, and compare with its dequantised form in float64."""
    levels, scale, zero = quantize_weight(weight)
    packed, scales_zeros = pack(levels, scale, zero)
    y = linear_w4a16(x, packed, scales_zeros, len(weight))
    assert y.shape == (len(x), len(weight))
    assert y.dtype == x.dtype
    dequantized = dequantize_weight(levels, scale, zero)
    reference = x.double() @ dequantized.double().T
    excess = (y.double() - reference).abs() - error_bound(x, dequantized)
    assert (excess <= 0).all(), f"error exceeds the bound by up to {excess.max():.3g}"


@settings(max_examples=80, deadline=None)
@given(out=st.integers(1, 20), groups=GROUPS, seed=SEEDS)
def test_weight_error_is_half_a_step(out: int, groups: int, seed: int) -> None:
    """|w - dequantised| <= s / 2 up to float32, s a fifteenth of the group's range, both end levels used."""
    weight = random_weight(out, groups * GROUP, seed)
    levels, scale, zero = quantize_weight(weight)
    assert levels.dtype == torch.int32
    assert levels.shape == weight.shape
    assert scale.shape == zero.shape == (out, groups)
    grouped = weight.double().view(out, groups, GROUP)
    used = grouped.amax(2) > grouped.amin(2)
    assert torch.allclose(scale.double()[used], ((grouped.amax(2) - grouped.amin(2)) / 15)[used], rtol=1e-5)
    ends = levels.view(out, groups, GROUP)[used]
    assert (ends.amin(1) == 0).all()
    assert (ends.amax(1) == 15).all()
    error = (grouped - dequantize_weight(levels, scale, zero).double().view(out, groups, GROUP)).abs()
    rounding = 2.0**-20 * (grouped.abs().amax(2) + 8 * scale.double())
    assert (error <= (scale.double() / 2 + rounding)[..., None]).all()


def test_levels_stand_for_the_documented_values() -> None:
    """w = s (q - 8) + z, group by group."""
    levels = torch.arange(2 * GROUP, dtype=torch.int32).remainder(16).expand(3, -1)
    scale = torch.tensor([[0.5, 2.0], [1.0, 4.0], [0.25, 8.0]])
    zero = torch.tensor([[0.0, 1.0], [-1.0, 2.0], [3.0, -4.0]])
    weight = dequantize_weight(levels, scale, zero)
    for channel in range(3):
        for k in range(2 * GROUP):
            group = k // GROUP
            assert weight[channel, k] == scale[channel, group] * (k % 16 - 8) + zero[channel, group]


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(0, 9),
    out=OUTS,
    groups=GROUPS,
    seed=SEEDS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_operator_agrees_with_dequantised_weights(
    rows: int, out: int, groups: int, seed: int, dtype: torch.dtype
) -> None:
    """Any rows (none too), channels in and out of multiples of 16, dtypes; float16 with weights that fit it."""
    weight = random_weight(out, groups * GROUP, seed)
    if dtype == torch.float16:
        weight = weight / weight.abs().amax(1, keepdim=True).clamp(min=1e-20)
    x = torch.randn(rows, groups * GROUP, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if rows > 1:
        x[1] = 0.0
    assert_within_bound(x, weight)


@pytest.mark.parametrize("out", [1, 15, 16, 17, 40])
def test_padding_of_output_channels_is_cut_off(out: int) -> None:
    """Levels read back with unit vectors: every channel in its place, none of the padding."""
    source = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (out, 3 * GROUP), generator=source, dtype=torch.int32)
    packed, scales_zeros = pack(levels, torch.ones(out, 3), torch.zeros(out, 3))
    y = linear_w4a16(torch.eye(3 * GROUP), packed, scales_zeros, out)
    assert torch.equal(y, (levels - 8).float().T)


@pytest.mark.parametrize("size", [1, 16, 31, 33, 48, 100])
def test_size_not_a_multiple_of_the_group(size: int) -> None:
    """Refused, with the size and the way out in the message."""
    with pytest.raises(ValueError, match=f"{size} input channels.*multiple of {GROUP}: use 8 bits"):
        quantize_weight(torch.randn(4, size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weight_of_any_float_dtype(dtype: torch.dtype) -> None:
    """Quantised as its float32 value; a transposed weight as its contiguous copy."""
    weight = torch.randn(2 * GROUP, 5, generator=torch.Generator().manual_seed(0)).to(dtype).t()
    for got, expected in zip(quantize_weight(weight), quantize_weight(weight.float().contiguous()), strict=True):
        assert torch.equal(got, expected)


def test_strided_input() -> None:
    """Every other row, one row for all: as their contiguous copies."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 2 * GROUP, generator=source)
    packed = pack(*quantize_weight(weight))
    base = torch.randn(8, 2 * GROUP, generator=source)
    for x in (base[::2], base[3:4]):
        assert torch.equal(linear_w4a16(x, *packed, 20), linear_w4a16(x.clone(), *packed, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_whose_features_are_not_contiguous(dtype: torch.dtype) -> None:
    """Transposed, every other column, a slice of columns, expanded: as their contiguous copies."""
    source = torch.Generator().manual_seed(0)
    packed = pack(*quantize_weight(torch.randn(20, 2 * GROUP, generator=source)))
    base = torch.randn(4 * GROUP, 4 * GROUP, generator=source).to(dtype)
    half = 2 * GROUP
    for x in (base[:half, :5].t(), base[:5, ::2], base[:5, 3 : 3 + half], base[:1, :half].expand(5, -1)):
        assert torch.equal(linear_w4a16(x, *packed, 20), linear_w4a16(x.contiguous(), *packed, 20))


@pytest.mark.parametrize("value", [0.0, 0.02, -0.02, 1.0, 1e-6, 300.0])
def test_constant_group(value: float) -> None:
    """A group without range keeps its one value to bfloat16 precision."""
    weight = torch.full((16, 2 * GROUP), value)
    weight[:, GROUP:] = torch.randn(16, GROUP, generator=torch.Generator().manual_seed(0))
    assert_within_bound(torch.eye(2 * GROUP), weight)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 5), out=OUTS, groups=GROUPS, group=st.sampled_from(FORMAT_GROUPS), seed=SEEDS,
    symmetric=st.booleans(),
)  # fmt: skip
def test_blocks_hold_the_levels(rows: int, out: int, groups: int, group: int, seed: int, symmetric: bool) -> None:
    """Packed and unpacked they are the same, and multiply as the weights that they stand for, on any device."""
    weight = random_weight(out, groups * 128, seed)[:, : groups * group].contiguous()
    levels, scale, zero = (
        (*quantize_weight_symmetric(weight, group), None) if symmetric else quantize_weight(weight, group)
    )
    packed = pack_blocks(levels)
    assert torch.equal(unpack_blocks(packed, groups * group), levels)
    x = torch.randn(rows, groups * group, generator=torch.Generator().manual_seed(seed))
    scales = torch.stack([scale.t()] if zero is None else [scale.t(), zero.t()], dim=-1)
    y = linear_w4a16(x, packed, scales, out)
    dense = dequantize_weight(levels, scale, zero)
    reference = x.double() @ dense.double().T
    assert (
        (y - reference).abs() <= (groups * group + 8) * 2.0**-24 * (x.double().abs() @ dense.double().abs().T)
    ).all()


@settings(max_examples=60, deadline=None)
@given(out=st.integers(1, 20), groups=GROUPS, group=st.sampled_from(FORMAT_GROUPS), seed=SEEDS)
def test_symmetric_weight_error_is_half_a_step(out: int, groups: int, group: int, seed: int) -> None:
    """|w - s (q - 8)| <= s / 2, the largest weight of a group at level 1 or 15."""
    weight = random_weight(out, groups * 128, seed)[:, : groups * group].contiguous()
    levels, scale = quantize_weight_symmetric(weight, group)
    error = (weight.double() - dequantize_weight(levels, scale).double()).abs()
    assert (error <= (scale.double() * (0.5 + 2.0**-19)).repeat_interleave(group, 1)).all()
    used = scale > 0
    assert ((levels - 8).abs().view(out, groups, group).amax(2)[used] == 7).all()


LEVELS = quantize_weight(torch.ones(4, 64))
BLOCKS, SCALES_ZEROS = pack_blocks(LEVELS[0]), pack(*LEVELS)[1][:, :4]


@pytest.mark.parametrize(
    ("x", "packed", "scales_zeros", "bias", "message"),
    [
        (torch.ones(2, 64).double(), BLOCKS, SCALES_ZEROS, None, "x is torch.float64"),
        (torch.ones(64), BLOCKS, SCALES_ZEROS, None, r"x has shape \(64,\)"),
        (torch.ones(2, 60), BLOCKS, SCALES_ZEROS, None, "x has 60 channels in 2 groups"),
        (torch.ones(2, 256), BLOCKS, SCALES_ZEROS, None, r"packed has shape \(4, 1, 32\), \[4, 2, 32\]"),
        (torch.ones(2, 64), BLOCKS, SCALES_ZEROS[..., 0], None, "scales_zeros is torch.bfloat16"),
        (torch.ones(2, 64), BLOCKS, SCALES_ZEROS[:, :3], None, "scales_zeros has 3 output channels"),
        (torch.ones(2, 64), BLOCKS.int(), SCALES_ZEROS, None, "packed lies on cpu in another device's layout"),
        (torch.ones(2, 64), BLOCKS, SCALES_ZEROS, torch.ones(3), "bias has shape"),
    ],
)
def test_bad_input(x: Tensor, packed: Tensor, scales_zeros: Tensor, bias: Tensor | None, message: str) -> None:
    """An error that names the tensor and the rule."""
    with pytest.raises(InputError, match=message):
        linear_w4a16(x, packed, scales_zeros, 4, bias)


def test_no_such_group() -> None:
    """Named with those there are."""
    with pytest.raises(InputError, match="group is 48, 4-bit groups have 32, 64, 128"):
        quantize_weight(torch.ones(4, 96), 48)
