from __future__ import annotations

from dataclasses import asdict

import pytest

from trimtab.compare.report.figures import forests
from trimtab.compare.report.frontier import frontier
from trimtab.compare.report.per_prompt import rows_of
from trimtab.compare.report.plots import as_legend, ratio_strips, scatter, styles

from .sample import comparison, figure, sweep


def rows_and_styles(prompts: int = 15):
    rows = rows_of(comparison(prompts)["records"])
    return rows, styles(list(dict.fromkeys(row.group for row in rows)))


def test_equal_sides_lie_on_the_diagonal() -> None:
    rows, by_group = rows_and_styles()
    plot = scatter(rows, by_group, seconds=True)
    assert len(plot.dots) == 14  # one failed
    for value in (1.3, 1.7):
        across = (plot.x.at(value) - plot.x.start) / (plot.x.end - plot.x.start)
        up = (plot.y.at(value) - plot.y.start) / (plot.y.end - plot.y.start)
        assert across == pytest.approx(up, abs=1e-3)


def test_a_faster_b_lies_above_the_diagonal_and_right_of_none() -> None:
    rows, by_group = rows_and_styles()
    plot, strips = scatter(rows, by_group, seconds=False), ratio_strips(rows, by_group)
    faster = {row.id for row in rows if row.ratio and row.ratio > 1}
    assert faster
    right = [dot for strip in strips.strips for dot in strip.dots if dot.x > strips.none]
    assert len(right) == len(faster)
    assert len(plot.dots) == sum(len(strip.dots) for strip in strips.strips)


def test_dots_of_a_strip_do_not_leave_it() -> None:
    rows, _ = rows_and_styles(400)
    strips = ratio_strips(rows, dict.fromkeys((row.group for row in rows), styles(["x"])["x"]))
    for strip in strips.strips:
        assert all(abs(dot.y - strip.y) <= 24 for dot in strip.dots)


def test_groups_differ_by_shape_or_colour() -> None:
    found = styles([str(number) for number in range(36)])
    assert len({(style.shape, style.colour) for style in found.values()}) == 36
    assert as_legend(styles(["only"])) == []


def test_a_forest_separates_ratios_from_differences() -> None:
    ratio, difference = forests(
        [f.__class__.as_dict(f) if hasattr(f, "as_dict") else f for f in comparison()["figures"]]
    )
    assert (ratio.kind, difference.kind) == ("ratio", "difference")
    first, second = ratio.rows
    assert ratio.none < first.mark.low < first.mark.at < first.mark.high
    assert (second.mark.at, second.mark.low, second.interval) == (ratio.none, None, "\N{EN DASH}")
    assert difference.rows[0].mark.low < difference.rows[0].mark.at < difference.none < difference.rows[0].mark.high
    assert difference.rows[0].p_value == "p = 0.062"


def test_a_bound_of_no_ratio_ends_at_the_edge() -> None:
    (forest,) = forests([asdict(figure(low=0.0))])
    assert forest.rows[0].mark.low == forest.axis.start
    (forest,) = forests([asdict(figure(change=float("nan"), low=None, high=None))])
    assert forest.rows[0].mark is None


def test_the_frontier_steps_from_one_best_setting_to_the_next() -> None:
    plot = frontier(sweep())
    zero, first, second, third = plot.spots
    assert [spot.pareto for spot in plot.spots] == [True, True, True, False]
    assert zero.x.here < third.x.here < first.x.here < second.x.here
    assert zero.y.here < first.y.here < second.y.here < third.y.here  # down in the drawing
    assert plot.line == (f"M{zero.x.here} {zero.y.here}V{first.y.here}H{first.x.here}V{second.y.here}H{second.x.here}")
    assert first.y.low > first.y.here > first.y.high


def test_a_sweep_without_quality_has_no_frontier() -> None:
    made = sweep()
    for point in made["points"]:
        point["figures"] = point["figures"][:1]
    assert frontier(made) is None
