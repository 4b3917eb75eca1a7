"""Entropy from the likeliest tokens, against float64 numpy over the whole distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decoding.top_entropy import entropy_range


def bits(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def ordered(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, the largest first, and their logarithms; -inf does not come out of a server."""
    p = np.sort(p)[::-1]
    return p, np.log(np.maximum(p, 1e-300))


@st.composite
def distributions(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.integers(2, 200))
    scale = draw(st.floats(0.0, 12.0))
    logits = np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=size) * scale
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@given(distributions(), st.data())
@settings(deadline=None)
def test_the_entropy_is_in_the_range(p: np.ndarray, data: st.DataObject) -> None:
    p, log_p = ordered(p)
    known = data.draw(st.integers(1, len(p)))
    found = entropy_range(log_p[:known].tolist(), len(p))
    assert found.low - 1e-6 <= bits(p) <= found.high + 1e-6
    assert found.low <= found.estimate <= found.high


@given(distributions(), st.data())
@settings(deadline=None)
def test_a_further_token_narrows_the_range(p: np.ndarray, data: st.DataObject) -> None:
    """A sampled token beyond the K likeliest is known as well."""
    p, log_p = ordered(p)
    known = data.draw(st.integers(1, len(p)))
    wide = entropy_range(log_p[:known].tolist(), len(p))
    if known < len(p):
        other = data.draw(st.integers(known, len(p) - 1))
        found = entropy_range(log_p[:known].tolist(), len(p), beyond=log_p[other : other + 1].tolist())
        assert wide.low - 1e-6 <= found.low <= bits(p) + 1e-6
        assert bits(p) - 1e-6 <= found.high <= wide.high + 1e-6


@given(st.integers(1, 50), st.integers(1, 500), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_both_bounds_are_reached(known: int, others: int, mass: float) -> None:
    """By an even tail, and by one that is as steep as the K-th token allows."""
    top = np.full(known, (1 - mass) / known)
    cap = top[0]
    if mass / others > cap:  # no such distribution: some of the others would be likelier
        return
    even = np.concatenate([top, np.full(others, mass / others)])
    full = int(mass / cap)
    steep = np.concatenate([top, np.full(full, cap), [mass - full * cap]])
    found = entropy_range(np.log(top).tolist(), known + others)
    assert found.high == pytest.approx(bits(even), abs=1e-9)
    assert found.low == pytest.approx(min(bits(steep), bits(even)), abs=1e-6)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("known", [20, 100])
def test_the_estimate_of_a_power_law_is_its_entropy(exponent: float, known: int) -> None:
    """Zipf's law over a vocabulary of 49152: the estimate is exact but for taking sums as integrals."""
    p = np.arange(1, 49153) ** -exponent
    p /= p.sum()
    found = entropy_range(np.log(p[:known]).tolist(), len(p))
    assert found.estimate == pytest.approx(bits(p), abs=2e-3)


def test_a_whole_vocabulary_is_exact() -> None:
    p = np.array([0.5, 0.25, 0.125, 0.125])
    assert entropy_range(np.log(p).tolist(), 4) == pytest.approx((1.75, 1.75, 1.75))


def test_float32_sums_beyond_one_are_no_error() -> None:
    found = entropy_range([math.log(0.5 + 1e-7), math.log(0.5)], 49152)
    assert found == pytest.approx((1.0, 1.0, 1.0), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, -1e-9])
def test_a_certain_token_has_no_entropy(value: float) -> None:
    assert entropy_range([value], 49152) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
