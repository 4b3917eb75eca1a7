"""The CPU path of int8 weights with activations as they are, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import InputError
from trimtab.kernels.linear_w8a8 import linear_w8a8, quantize_weight
from trimtab.kernels.linear_w8a16 import linear_w8a16, linear_w8a16_reference


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    out=st.sampled_from([1, 7, 64, 97]),
    size=st.sampled_from([1, 2, 13, 64, 257]),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
)
def test_error_is_that_of_the_sums(rows: int, out: int, size: int, seed: int, dtype: torch.dtype, bias: bool) -> None:
    """Float32 sums and one rounding to the dtype."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=source).to(dtype)
    weight, scale = quantize_weight(torch.randn(out, size, generator=source))
    shift = torch.randn(out, generator=source) if bias else None
    y = linear_w8a16(x, weight, scale, shift)
    assert (y.dtype, y.shape) == (dtype, (rows, out))
    reference = linear_w8a16_reference(x, weight, scale, shift)
    magnitude = linear_w8a16_reference(x.abs(), weight.abs(), scale, None if shift is None else shift.abs())
    assert (
        (y.double() - reference).abs()
        <= (size + 8) * 2.0**-24 * magnitude + torch.finfo(dtype).eps * reference.abs() + 1e-7
    ).all()


X, (WEIGHT, SCALE) = torch.randn(2, 8), quantize_weight(torch.randn(4, 8))


@pytest.mark.parametrize("linear", [linear_w8a8, linear_w8a16])
@pytest.mark.parametrize(
    ("x", "weight", "scale", "bias", "message"),
    [
        (X.double(), WEIGHT, SCALE, None, "x is torch.float64"),
        (X[:, :7], WEIGHT, SCALE, None, "x has 7 channels, weight has 8"),
        (X[0], WEIGHT, SCALE, None, r"x has shape \(8,\)"),
        (X, WEIGHT.float(), SCALE, None, "weight is torch.float32"),
        (X, WEIGHT.t().contiguous().t(), SCALE, None, "weight is not contiguous"),
        (X, WEIGHT, SCALE.half(), None, "scale is torch.float16"),
        (X, WEIGHT, SCALE[:3], None, r"scale .* \(3,\), float32 \[4\]"),
        (X, WEIGHT, SCALE, torch.zeros(5), r"bias has shape \(5,\), \[4\]"),
        (X.to("meta"), WEIGHT, SCALE, None, "x lies on meta, weight on cpu"),
    ],
)
def test_bad_input(linear, x, weight, scale, bias, message) -> None:  # type: ignore[no-untyped-def]
    """An error that names the tensor and the rule, before any work."""
    with pytest.raises(InputError, match=message):
        linear(x, weight, scale, bias)


def test_cpu_tensor_into_a_gpu_kernel() -> None:
    """The back end itself refuses what the dispatch never sends it."""
    pytest.importorskip("triton")
    from trimtab.kernels.gpu import linear_w8a16 as gpu
    from trimtab.kernels.gpu.convert import INTERPRETED

    if INTERPRETED:
        pytest.skip("the interpreter runs on the CPU")
    with pytest.raises(InputError, match="x lies on cpu, a GPU kernel needs it on cuda"):
        gpu.linear_w8a16(X, WEIGHT, SCALE, None)
