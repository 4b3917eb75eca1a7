"""Entropy against float64 numpy, the gate against five lines of Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from trimtab import InputError
from trimtab.decoding.entropy_gate import EntropyGate, GateSettings, entropy_bits, rolling_means

# multiples of 1/8: means and comparisons are exact, so that no order of additions can matter
BITS = st.integers(0, 40).map(lambda eighths: eighths / 8)


def exact_entropy(logits: torch.Tensor) -> np.ndarray[Any, Any]:
    log_p = log_softmax(logits.double().numpy(), axis=-1)
    return -np.where(log_p > -np.inf, np.exp(log_p) * log_p / np.log(2), 0.0).sum(-1)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 4),
    vocab=st.integers(1, 3000),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0, 100.0]),
)
def test_entropy_is_that_of_float64(seed: int, rows: int, vocab: int, scale: float) -> None:
    logits = scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) + 50
    np.testing.assert_allclose(entropy_bits(logits).numpy(), exact_entropy(logits), atol=2e-5, rtol=2e-5)


def test_entropy_of_known_distributions() -> None:
    uniform = torch.zeros(1, 1024)
    assert entropy_bits(uniform).item() == pytest.approx(10.0)
    assert entropy_bits(uniform, 256).item() == pytest.approx(8.0)
    halves = torch.full((1, 8), -torch.inf)
    halves[0, :2] = 3.0
    assert entropy_bits(halves).item() == pytest.approx(1.0)
    halves[0, 0] = 1e4
    assert entropy_bits(halves).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entropy_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert entropy_bits(logits).dtype == torch.float32
    np.testing.assert_allclose(entropy_bits(logits).numpy(), exact_entropy(logits), rtol=2e-5)


def test_padding_of_the_head_is_left_out() -> None:
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([logits, torch.full((2, 28), 9.0)], dim=1)
    torch.testing.assert_close(entropy_bits(padded, 100), entropy_bits(logits))


def exponential(entropies: list[float], decay: float) -> float:
    weights = [decay**age for age in range(len(entropies))][::-1]
    return sum(w * h for w, h in zip(weights, entropies, strict=True)) / sum(weights)


def reference(entropies: list[float], gate: GateSettings) -> list[bool]:
    """Who writes each token, and who would write the next."""
    large, stay, found = gate.start_large, 0, [gate.start_large]
    lower = gate.threshold if gate.lower_threshold is None else gate.lower_threshold
    for step in range(1, len(entropies) + 1):
        recent = entropies[max(step - gate.window, 0) : step]
        mean = sum(recent) / len(recent) if gate.decay is None else exponential(entropies[:step], gate.decay)
        stay += 1
        wants_large = mean > (lower if large else gate.threshold)
        if wants_large != large and stay >= (gate.min_stay or gate.window):
            large, stay = wants_large, 0
        found.append(large)
    return found


GATES = st.builds(
    lambda pair, window, min_stay, start, lower: GateSettings(
        max(pair), window, min_stay, min(pair) if lower else None, start
    ),
    st.tuples(BITS, BITS),
    st.integers(1, 7),
    st.none() | st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=400, deadline=None)
@given(gate=GATES, series=st.lists(st.lists(BITS, max_size=40), min_size=1, max_size=5), data=st.data())
def test_rows_switch_as_the_reference_does(gate: GateSettings, series: list[list[float]], data: st.DataObject) -> None:
    """Rows of any lengths, any of them taking part in a step: each is what it would be alone."""
    batch = EntropyGate(len(series), gate)
    found = [[bool(large)] for large in batch.large]
    done = [0] * len(series)
    while waiting := [row for row, values in enumerate(series) if done[row] < len(values)]:
        rows = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        batch.update(torch.tensor([series[row][done[row]] for row in rows]), rows)
        for row in rows:
            done[row] += 1
            found[row].append(bool(batch.large[row]))
    assert found == [reference(values, gate) for values in series]


@settings(max_examples=200, deadline=None)
@given(
    series=st.lists(BITS, min_size=1, max_size=40),
    decay=st.sampled_from([0.0, 0.3, 0.8, 0.97]),
    min_stay=st.integers(1, 5),
    # no sum of eighths comes near: which side of it a mean is on is no matter of rounding
    threshold=st.integers(0, 40).map(lambda eighths: eighths / 8 + 0.061803398875),
)
def test_exponential_average(series: list[float], decay: float, min_stay: int, threshold: float) -> None:
    gate = GateSettings(threshold, min_stay=min_stay, decay=decay)
    means = rolling_means(series, gate)
    np.testing.assert_allclose(means, [exponential(series[:end], decay) for end in range(1, len(series) + 1)])
    batch, found = EntropyGate(2, gate), [False]
    for bits in series:
        batch.update(torch.tensor([bits], dtype=torch.float64), [1])
        found.append(bool(batch.large[1]))
    assert found == reference(series, gate)
    assert batch.mean.tolist() == [0.0, means[-1]]


def test_hysteresis_and_minimum_stay() -> None:
    gate = EntropyGate(1, GateSettings(2.0, window=1, min_stay=2, lower_threshold=1.0))
    seen = []
    for bits in (3.0, 3.0, 0.5, 1.5, 1.0, 3.0, 2.0, 2.5):
        gate.update(torch.tensor([bits]), [0])
        seen.append(bool(gate.large[0]))
    assert seen == [False, True, True, True, False, False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -0.5}, r"threshold is -0\.5"),
        ({"threshold": float("nan")}, r"threshold is nan"),
        ({"threshold": "1"}, r"threshold is '1'"),
        ({"threshold": 1.0, "window": 0}, r"window is 0: give a whole number of at least 1"),
        ({"threshold": 1.0, "window": 2.5}, r"window is 2\.5"),
        ({"threshold": 1.0, "decay": 1.0}, r"decay is 1\.0"),
        ({"threshold": 1.0, "decay": -0.1}, r"decay is -0\.1"),
        ({"threshold": 1.0, "decay": "0.8"}, r"decay is '0\.8'"),
        ({"threshold": 1.0, "min_stay": 0}, r"min_stay is 0"),
        ({"threshold": 1.0, "lower_threshold": -1.0}, r"lower_threshold is -1\.0"),
        ({"threshold": 1.0, "lower_threshold": 1.5}, r"lower_threshold is 1\.5 and threshold is 1"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GateSettings(**arguments)
