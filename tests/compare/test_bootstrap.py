"""The bootstrap: its figures are the plain ratios, and its intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from trimtab.compare.bootstrap import bootstrap, mean, rate_ratio, ratio, share


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


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [4, 5, 8, 16])
def test_studentized_interval_holds_with_few_prompts(prompts: int) -> None:
    # speedups with a long tail between prompts, where the percentile interval holds the truth about 83 times in 100
    def data(generator: np.random.Generator, count: int) -> np.ndarray:
        tokens = generator.lognormal(4, 0.7, count)
        faster = generator.lognormal(0.3, 0.4, count)
        return np.array([tokens / faster, tokens * generator.lognormal(0, 0.05, count)])

    large = data(np.random.default_rng(1), 2_000_000).mean(axis=1)
    truth, hits, trials = large[1] / large[0], 0, 300
    generator = np.random.default_rng(0)
    for _ in range(trials):
        ours, base = data(generator, prompts)
        interval = ratio([base], [ours])
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= truth <= interval.high
    assert hits / trials >= 0.92


def test_prompts_that_agree_but_for_two_do_not_stretch_the_interval() -> None:
    # a resample without the first has a fifteenth of the spread to measure by
    base = [48.0, 31.0, 48.0, 40.0, 48.0, 22.0, 48.0, 35.0]
    ours = [33.0, 30.0, *base[2:]]
    value, low, high = ratio([ours], [base])
    assert value == pytest.approx(sum(ours) / sum(base))
    assert low is not None
    assert high is not None
    assert low < value < 1 < high
    assert high / low < 2  # it was 6


def test_mean_is_never_surer_than_students_interval() -> None:
    values = np.random.default_rng(0).normal(1, 2, 7)
    interval = mean(list(values))
    half = stats.t.ppf(0.975, 6) * values.std(ddof=1) / np.sqrt(7)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high is not None
    assert interval.high - interval.value >= half - 1e-12


def test_ratio_of_sides_that_are_the_same_has_no_width() -> None:
    values = [[3.0, 5.0, 8.0]]
    assert ratio(values, values) == (1, 1, 1)
