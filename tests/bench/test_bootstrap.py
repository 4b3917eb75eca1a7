"""The bootstrap: its figures are the plain ratios, and its intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from bench.bootstrap import bootstrap, rate_ratio, share


def test_value_is_the_ratio_of_total_rates() -> None:
    interval = rate_ratio([10, 30], [1.0, 1.0], [10, 10], [2.0, 2.0])
    assert interval.value == pytest.approx((40 / 2) / (20 / 4))
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low <= interval.value <= interval.high


def test_same_data_give_the_same_interval() -> None:
    data = ([3, 5, 7, 9], [4, 8, 8, 10])
    assert share(*data) == share(*data)


def test_prompts_that_do_not_differ_leave_no_uncertainty() -> None:
    assert share([2, 2, 2], [4, 4, 4]) == (0.5, 0.5, 0.5)


def test_one_prompt_has_no_interval() -> None:
    assert rate_ratio([8], [2.0], [8], [4.0]) == (2.0, None, None)


@pytest.mark.slow
def test_interval_covers_the_true_ratio_of_paired_rates() -> None:
    # prompts differ a lot in length and share their noise between the arms: only the arms' own difference may count
    generator = np.random.default_rng(0)
    truth, trials, prompts, hits, widths = 1.5, 300, 40, 0, []
    for _ in range(trials):
        tokens = generator.integers(20, 200, prompts).astype(float)
        machine = generator.lognormal(0, 0.5, prompts)
        base = tokens / 10 * machine * generator.lognormal(0, 0.1, prompts)
        ours = tokens / 10 / truth * machine * generator.lognormal(0, 0.1, prompts)
        interval = bootstrap(
            [list(tokens), list(ours), list(tokens), list(base)],
            lambda sums: (sums[0] / sums[1]) / (sums[2] / sums[3]),
            resamples=1000,
        )
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= truth <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.88 <= hits / trials <= 0.99
    # unpaired, the shared noise alone would make it about six times as wide
    assert np.mean(widths) < 0.25
