from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.compare.report.axes import axis_over

positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=1, max_size=20), st.booleans())
def test_everything_lies_inside_and_in_order(values: list[float], log: bool) -> None:
    axis = axis_over(values, 10, 410, log=log)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 10 <= places[0] <= places[-1] <= 410


@given(st.lists(positive, min_size=1, max_size=20), st.booleans())
def test_ticks_lie_on_the_axis_and_tell_themselves_apart(values: list[float], log: bool) -> None:
    axis = axis_over(values, 410, 10, log=log)
    ticks = axis.ticks
    assert all(10 <= tick.at <= 410 for tick in ticks)
    assert len({tick.label for tick in ticks}) == len(ticks)
    places = [tick.at for tick in ticks]
    assert places == sorted(places, reverse=True)


@pytest.mark.parametrize(
    ("low", "high", "log", "labels"),
    [
        (0.9, 2.3, True, "1.0 1.5 2.0"),
        (0.5, 30, True, "1 3 10 30"),
        (0.02, 9, True, "0.1 1 10"),
        (-0.2, 0.1, False, "-0.2 -0.1 0.0 0.1"),
        (990, 1010, False, "990 995 1,000 1,005 1,010"),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, labels: str) -> None:
    ticks = axis_over([low, high], 0, 250, log=log).ticks
    assert " ".join(tick.label for tick in ticks).replace("\N{MINUS SIGN}", "-") == labels


def test_one_value_and_none_have_an_axis() -> None:
    assert axis_over([3.0], 0, 100).ticks
    assert axis_over([], 0, 100, log=True).ticks
    assert axis_over([0.0, float("nan"), 2.0], 0, 100, log=True).low > 1.9
