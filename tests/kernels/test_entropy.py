"""Entropy, best tokens and margin on the CPU, as a torch operator, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, softmax

from trimtab.errors import InputError
from trimtab.kernels.entropy import entropy, entropy_bits


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 4),
    vocab=st.sampled_from([1, 2, 3, 97, 1023]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    excluded=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_figures_are_those_of_float64(
    seed: int, rows: int, vocab: int, dtype: torch.dtype, scale: float, excluded: float
) -> None:
    """Ties and excluded tokens too; the two best logits and their margin are exact."""
    source = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(rows, vocab, generator=source)).to(dtype)
    logits[:, 1:][torch.rand(rows, vocab - 1, generator=source) < excluded] = -torch.inf
    found = entropy(logits)
    exact = logits.double().numpy()
    bits = entr(softmax(exact, axis=-1)).sum(-1) / np.log(2)
    np.testing.assert_allclose(found.entropy.numpy(), bits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropy, entropy_bits(logits), rtol=0, atol=0)
    best = np.sort(np.pad(exact, ((0, 0), (1, 0)), constant_values=-np.inf), axis=-1)[:, :-3:-1]
    np.testing.assert_array_equal(found.first.numpy(), best[:, 0])
    np.testing.assert_array_equal(found.second.numpy(), best[:, 1])
    np.testing.assert_array_equal(found.margin.numpy(), (best[:, 0] - best[:, 1]).astype(np.float32))
    np.testing.assert_array_equal(found.token.numpy(), exact.argmax(-1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_distribution(value: float) -> None:
    """Nan for the row, and for no other."""
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    logits[1, 7], logits[2] = value, -torch.inf
    assert entropy(logits).entropy.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator(dtype: torch.dtype) -> None:
    """torch's own checks: schema, fake results against real ones, tracing with and without dynamic shapes."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.library.opcheck(torch.ops.trimtab.entropy.default, (logits,))


def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda x: entropy(2 * x), fullgraph=True, backend="aot_eager")
    for rows in (1, 4):
        logits = torch.randn(rows, 50, generator=torch.Generator().manual_seed(rows))
        for got, expected in zip(compiled(logits), entropy(2 * logits), strict=True):
            assert torch.equal(got, expected)


def test_fake_results_have_shape_and_dtype() -> None:
    found = torch.ops.trimtab.entropy(torch.empty(5, 9, dtype=torch.bfloat16, device="meta"))
    assert [(tuple(x.shape), x.dtype) for x in found] == [
        ((5,), torch.float32),
        ((5, 2), torch.float32),
        ((5,), torch.int64),
    ]


@pytest.mark.parametrize("call", [entropy, entropy_bits])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(3), r"logits has shape \(3,\), \[rows, vocab\] is needed"),
        (torch.zeros(1, 2, 3), r"logits has shape \(1, 2, 3\)"),
        (torch.zeros(2, 0), r"logits has shape \(2, 0\)"),
        (torch.zeros(2, 3, dtype=torch.float64), "logits is torch.float64"),
        (torch.zeros(2, 3, dtype=torch.int64), "logits is torch.int64"),
    ],
)
def test_bad_input(call, logits, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call(logits)
