"""Accuracy of two sides on the same prompts: the interval and McNemar's test never disagree, and both hold."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.compare.proportions import _score_bounds, difference, mcnemar, paired, sign_flip


def test_mcnemar_is_the_binomial_tail() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 7) == pytest.approx(2 * sum(comb(8, k) for k in (0, 1)) / 2**8)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 60))
def test_interval_excludes_no_difference_exactly_where_the_test_does(gained: int, lost: int, same: int) -> None:
    if not gained + lost + same:
        return
    value, low, high = difference(gained, lost, gained + lost + same)
    assert low is not None
    assert high is not None
    assert -1 <= low <= value <= high <= 1
    assert (not low <= 0 <= high) == (mcnemar(gained, lost) < 0.05)


def test_no_discordant_prompt_is_no_certainty() -> None:
    # Tango's interval is then z^2 / (n + z^2) wide to either side
    square = 1.959963985**2
    _, low, high = difference(0, 0, 50)
    assert (low, high) == pytest.approx((-square / (50 + square), square / (50 + square)), abs=1e-6)


def test_score_bounds_solve_their_own_equation() -> None:
    # independent of the closed form: the likeliest share of prompts that A alone gets right, found on a grid
    gained, lost, prompts = 9, 4, 60
    for bound in _score_bounds(gained, lost, prompts, 0.95):
        shares = np.linspace(max(0, -bound) + 1e-9, (1 - bound) / 2, 2_000_001)[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = (
                lost * np.log(shares)
                + gained * np.log(shares + bound)
                + (prompts - gained - lost) * np.log(1 - 2 * shares - bound)
            )
        share = shares[np.nanargmax(likelihood)]
        score = (gained - lost - prompts * bound) / np.sqrt(prompts * (2 * share + bound - bound**2))
        assert abs(score) == pytest.approx(1.96, abs=1e-3)


@pytest.mark.slow
def test_interval_covers_the_true_difference() -> None:
    generator = np.random.default_rng(0)
    for prompts, (gained, lost) in product((10, 40), ((0.01, 0.01), (0.05, 0.1), (0.2, 0.3), (0.3, 0.0))):
        hits = 0
        for _ in range(200):
            b, c, _ = generator.multinomial(prompts, [gained, lost, 1 - gained - lost])
            _, low, high = difference(int(b), int(c), prompts)
            assert low is not None
            assert high is not None
            hits += low - 1e-9 <= gained - lost <= high + 1e-9
        assert hits >= 182  # 95% of 200 less three standard deviations


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14))
def test_sign_flips_of_right_and_wrong_are_mcnemar(answers: list[tuple[bool, bool]]) -> None:
    gained, lost = sum(b > a for a, b in answers), sum(a > b for a, b in answers)
    assert sign_flip([float(b) - float(a) for a, b in answers]) == pytest.approx(mcnemar(gained, lost))


def test_drawn_flips_come_near_the_exact_ones() -> None:
    changes = [1.0] * 17 + [-1.0] * 7
    assert sign_flip(changes) == pytest.approx(mcnemar(17, 7), rel=0.1)


def test_graded_scores_agree_with_their_test_too() -> None:
    a, b = [0.5, 0.0, 1.0, 0.5, 0.0, 0.5], [1.0, 0.5, 1.0, 1.0, 0.5, 1.0]
    (value, low, high), p_value = paired(a, b)
    assert value == pytest.approx(2.5 / 6)
    assert p_value == pytest.approx(2 / 2**5)  # five of five went up
    assert low is not None
    assert high is not None
    assert low <= 0 <= high <= 1


def test_graded_scores_that_are_all_the_same_are_no_certainty() -> None:
    (value, low, high), p_value = paired([0.5] * 8, [0.5] * 8)
    assert (value, p_value) == (0, 1)
    assert low is not None
    assert high is not None
    assert low < -0.1
    assert high > 0.1
