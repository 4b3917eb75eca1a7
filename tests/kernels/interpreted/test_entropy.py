"""Entropy, the two best logits and the best token in one pass: against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.kernels.entropy import entropy_reference
from trimtab.kernels.gpu import entropy as gpu

from .cases import DTYPES, SEEDS


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 4), vocab=st.sampled_from([1, 2, 3, 97, 4096, 4099, 9001]), seed=SEEDS, dtype=DTYPES,
    scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 300.0]), excluded=st.sampled_from([0.0, 0.5, 0.99]),
)  # fmt: skip
@example(rows=1, vocab=50_257, seed=0, dtype=torch.bfloat16, scale=3.0, excluded=0.1)
def test_entropy(rows: int, vocab: int, seed: int, dtype: torch.dtype, scale: float, excluded: float) -> None:
    """Far from 0 too, with tokens excluded and ties; sums of 2**17 terms in lanes lose few digits."""
    source = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocab, generator=source) + 50
    logits[torch.rand(rows, vocab, generator=source) < excluded] = -torch.inf
    logits[:, 0] = 50.0
    logits = logits.to(dtype)
    bits, values, token = gpu.entropy(logits)
    expected_bits, expected_values, _ = entropy_reference(logits.double())
    torch.testing.assert_close(bits.double(), expected_bits, rtol=1e-5, atol=1e-5)
    assert torch.equal(values.double(), expected_values)
    # the lowest token of those that are largest
    lowest = (logits == logits.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(token, lowest)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 5000])
def test_no_distribution(value: float, place: int) -> None:
    """Nan for the row, and for no other."""
    logits = torch.randn(3, 5001)
    logits[1, place] = value
    logits[2] = -torch.inf
    bits, _, _ = gpu.entropy(logits)
    assert bits.isnan().tolist() == [False, True, True]


def test_strided_rows() -> None:
    """A slice of a wider tensor, and one that is transposed in memory."""
    wide = torch.randn(3, 500)
    for logits in (wide[:, 7:400], wide.t().contiguous().t()):
        for got, expected in zip(gpu.entropy(logits), gpu.entropy(logits.clone().contiguous()), strict=True):
            assert torch.equal(got, expected)
