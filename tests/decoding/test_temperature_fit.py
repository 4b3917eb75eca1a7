from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trimtab import InputError
from trimtab.decoding.score_table import ScoreTable
from trimtab.decoding.temperature import ABILITIES, mutation_temperature
from trimtab.decoding.temperature_fit import check_grid, fit_ability, interpolated, score_record

GRID = [0.1, 0.7, 1.0, 1.6]


def scores(prompts: int, seed: int = 0) -> torch.Tensor:
    """Shares of right answers that fall with temperature."""
    share = torch.tensor([0.8, 0.7, 0.5, 0.1], dtype=torch.float64)
    drawn = torch.rand(4, prompts, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn < share).double().mean(0)


def test_intervals_agree_with_scipy() -> None:
    """Both resample 40 prompts; the bounds of 10,000 resamples wobble by about 0.002, a twentieth of the width."""
    data = scores(40)
    fit = fit_ability(data, torch.tensor(GRID))
    reference = stats.bootstrap(
        (data.numpy(),), np.mean, axis=0, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert fit.low is not None
    assert fit.high is not None
    np.testing.assert_allclose(fit.scores, data.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(fit.low, reference.low, atol=0.012)
    np.testing.assert_allclose(fit.high, reference.high, atol=0.012)


def test_the_interval_of_the_mutation_temperature_is_that_of_resampled_prompts() -> None:
    """Resampled one by one in numpy, under another generator; the grid makes equal bounds likely, and here certain."""
    data, grid = scores(25, seed=4), torch.tensor(GRID, dtype=torch.float64)
    fit = fit_ability(data, grid)
    rng = np.random.default_rng(1)
    found = [float(mutation_temperature(data[rng.integers(25, size=25)].mean(0), grid)) for _ in range(4000)]
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    assert (fit.mutation, fit.mutation_low, fit.mutation_high) == (
        float(mutation_temperature(data.mean(0), grid)), low, high,
    )  # fmt: skip


def test_intervals_cover_the_truth() -> None:
    """200 data sets of 40 prompts: a percentile interval covers 93% or so; under 86% has odds below 1 in 10,000."""
    covered = 0
    for seed in range(200):
        fit = fit_ability(scores(40, seed), torch.tensor(GRID), seed=seed)
        assert fit.low is not None
        assert fit.high is not None
        covered += int(fit.low[1] <= 0.7 <= fit.high[1])
    assert covered >= 172


def test_one_prompt_has_no_interval_and_equal_ones_have_a_narrow_one() -> None:
    one = fit_ability(torch.ones(1, 4), torch.tensor(GRID))
    assert one.prompts == 1
    assert one.low is one.high is one.mutation_low is one.mutation_high is None
    many = fit_ability(torch.full((5, 4), 0.5), torch.tensor(GRID))
    assert many.low is not None
    assert torch.equal(many.low, many.scores)


def test_the_same_seed_gives_the_same_intervals() -> None:
    first, second = (fit_ability(scores(10), torch.tensor(GRID), seed=7) for _ in range(2))
    assert first.low is not None
    assert second.low is not None
    assert torch.equal(first.low, second.low)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "at least two"),
        ([0.5], "at least two"),
        ([0.0, 1.0], "above 0"),
        ([0.5, float("nan")], "above 0"),
        ([1.0, 0.5], "ascending"),
        ([0.5, 0.5], "ascending"),
        ([1.3, 1.6], "one up to 1"),
    ],
)
def test_grids_that_cannot_be_measured_are_refused(grid: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_grid(grid)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.05, 3), min_size=1, max_size=6, unique=True).map(sorted),
    st.lists(st.floats(0.05, 3), min_size=1, max_size=6),
    st.integers(0, 10**6),
)
def test_interpolation_is_numpys(known: list[float], grid: list[float], seed: int) -> None:
    row = torch.rand(len(known), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = interpolated(row, torch.tensor(known, dtype=torch.float64), grid)
    np.testing.assert_allclose(found, np.interp(grid, known, row.numpy()), atol=1e-9)


def test_a_table_can_be_read_and_borrows_what_was_not_measured(tmp_path: Path) -> None:
    default, grid = ScoreTable.read(), torch.tensor(GRID, dtype=torch.float64)
    fits = {"CR": fit_ability(scores(9), grid), "MT": fit_ability(torch.zeros(3, 4), grid)}
    record = score_record("mine", 2e9, GRID, fits, default, source="test")
    path = tmp_path / "table.json"
    path.write_text(json.dumps(record))
    table = ScoreTable.read(path)
    about = record["models"]["mine"]
    assert record["source"] == "test"
    assert about["borrowed"] == ["CT", "ICL", "IF", "MT", "SUMM"]
    assert about["borrowed_from"] == "1-4B"
    assert table.grid.tolist() == GRID
    assert table.scores["mine"][0].tolist() == pytest.approx(scores(9).mean(0).tolist(), abs=1e-6)
    lent = default.relative(2e9)
    for ability in about["borrowed"]:
        row = ABILITIES.index(ability)
        expected = np.interp(GRID, default.grid.numpy(), lent[row].numpy())
        assert table.scores["mine"][row].tolist() == pytest.approx(expected, abs=1e-6)
    assert about["measured"]["MT"]["prompts"] == 3
    assert about["measured"]["MT"]["mutation_temperature"] is None
    assert len(about["measured"]["CR"]["interval_95"]) == 4


def test_a_full_table_borrows_nothing() -> None:
    fits = {ability: fit_ability(scores(4), torch.tensor(GRID)) for ability in ABILITIES}
    about = score_record("mine", 7e9, GRID, fits, ScoreTable.read())["models"]["mine"]
    assert about["borrowed"] == []
    assert about["borrowed_from"] is None
