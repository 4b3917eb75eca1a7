"""Weights in 4 bits: against float64 with the scales as they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.kernels.gpu.linear_w4a16 import linear_w4a16
from trimtab.kernels.linear_w4a16 import (
    GROUPS,
    linear_w4a16_reference,
    pack_blocks,
    quantize_weight,
    quantize_weight_symmetric,
)

from .cases import DTYPES, OUTS, ROWS, SEEDS, SPLITS, assert_close, config, random_input, random_weight, strided


@settings(max_examples=20, deadline=None)
@given(
    rows=ROWS, out=OUTS, groups=st.integers(1, 5), group=st.sampled_from(GROUPS), split=SPLITS, seed=SEEDS,
    dtype=DTYPES, stored=DTYPES, symmetric=st.booleans(), bias=st.booleans(), how=st.integers(0, 2),
)  # fmt: skip
@example(
    rows=1, out=131, groups=5, group=32, split=2, seed=0, dtype=torch.bfloat16, stored=torch.bfloat16,
    symmetric=False, bias=True, how=2,
)  # fmt: skip
@example(
    rows=0, out=7, groups=1, group=64, split=1, seed=0, dtype=torch.float16, stored=torch.float32,
    symmetric=True, bias=False, how=0,
)  # fmt: skip
def test_product(
    rows: int, out: int, groups: int, group: int, split: int, seed: int, dtype: torch.dtype, stored: torch.dtype,
    symmetric: bool, bias: bool, how: int,
) -> None:  # fmt: skip
    size = groups * group
    x = random_input(rows, size, seed, dtype)
    weight = random_weight(out, size, seed)
    if symmetric:
        (levels, scale), zero = quantize_weight_symmetric(weight, group), None
    else:
        levels, scale, zero = quantize_weight(weight, group)
    scale, zero = scale.to(stored), None if zero is None else zero.to(stored)
    shift = torch.randn(out, generator=torch.Generator().manual_seed(seed)).to(dtype) if bias else None
    y = linear_w4a16(
        strided(x, how), pack_blocks(levels), scale.t(), None if zero is None else zero.t(), shift, group,
        config(rows, split, 128),
    )  # fmt: skip
    assert y.dtype == dtype
    assert y.shape == (rows, out)
    reference = linear_w4a16_reference(x, levels, scale, zero)
    # s (q - 8) and z are summed apart, so that neither cancels within the sums
    zero_size = None if zero is None else zero.abs()
    magnitude = linear_w4a16_reference(x.abs(), (levels - 8).abs() + 8, scale.abs(), zero_size)
    added = torch.zeros(()) if shift is None else shift
    assert_close(y, reference + added.double(), magnitude + added.double().abs(), size)


@pytest.mark.parametrize("group", GROUPS)
def test_every_level_in_its_place(group: int) -> None:
    """Unit vectors read the levels back: no channel of a block is mistaken for another."""
    source = torch.Generator().manual_seed(0)
    size = 3 * group
    levels = torch.randint(0, 16, (40, size), generator=source, dtype=torch.int32)
    y = linear_w4a16(torch.eye(size), pack_blocks(levels), torch.ones(3, 40), None, None, group, config(size, 1, 128))
    assert torch.equal(y, (levels - 8).float().T)


def test_inf_and_nan_with_symmetric_weights() -> None:
    """As in torch's product with the dequantised weights, and in no other token."""
    source = torch.Generator().manual_seed(0)
    levels, scale = quantize_weight_symmetric(torch.randn(20, 128, generator=source))
    x = torch.randn(4, 128, generator=source)
    x[1, 3], x[2, 127], x[3, 5], x[3, 6] = torch.inf, torch.nan, torch.inf, -torch.inf
    y = linear_w4a16(x, pack_blocks(levels), scale.t(), None, None, 32, config(4, 1, 128))
    expected = linear_w4a16_reference(x, levels, scale)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.double()[y.isinf()], expected[expected.isinf()])


def test_inf_and_nan_with_zero_points() -> None:
    """Nothing finite where torch has inf or nan: levels and zero points are summed apart, and may cancel to nan."""
    source = torch.Generator().manual_seed(0)
    levels, scale, zero = quantize_weight(torch.randn(20, 128, generator=source))
    x = torch.randn(3, 128, generator=source)
    x[1, 3], x[2, 127] = torch.inf, torch.nan
    y = linear_w4a16(x, pack_blocks(levels), scale.t(), zero.t(), None, 32, config(3, 1, 128))
    assert not y[1:].isfinite().any()
    assert y[0].isfinite().all()
