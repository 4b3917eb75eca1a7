"""A sweep's settings by speed and quality, and which of them no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .axes import Axis, axis_over
from .figures import label_of
from .numbers import is_number, short
from .plots import BOTTOM, LEFT, RIGHT, TOP

WIDTH, HEIGHT = 480, 360


class Span(NamedTuple):
    """An estimate and its bounds, None where the prompts are too few to say."""

    here: float
    low: float | None = None
    high: float | None = None

    def drawn(self, axis: Axis) -> Span:
        """Its places on an axis."""
        low, high = (None if bound is None else axis.at(bound) for bound in (self.low, self.high))
        return Span(axis.at(self.here), low, high)


@dataclass(frozen=True, slots=True)
class Spot:
    """One setting in the plot; number 0 is the baseline, and the others count as the table does."""

    number: int
    x: Span
    y: Span
    pareto: bool
    title: str


@dataclass(frozen=True, slots=True)
class Frontier:
    """Speed to the right, quality up; `line` is a path through the settings that no other one beats in both."""

    quality: str
    x: Axis
    y: Axis
    spots: list[Spot]
    line: str
    width: int = WIDTH
    height: int = HEIGHT


def figure_of(point: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A point's figure by name."""
    return next((figure for figure in point["figures"] if figure["name"] == name), None)


def frontier(sweep: Mapping[str, Any]) -> Frontier | None:
    """The plot of a sweep's JSON; None where no point has both figures."""
    name = sweep["quality"]
    quality = label_of(name)
    level = next((figure["a"] for point in sweep["points"] if (figure := figure_of(point, name))), math.nan)
    known = [
        (number, point["label"], bool(point["pareto"]), speed, good)
        for number, point in enumerate(sweep["points"], 1)
        if (speed := _speed(point)) and (good := _quality(point, name, level))
    ]
    if not known:
        return None
    known.insert(0, (0, "baseline", bool(sweep["baseline"].get("pareto")), Span(1.0), Span(level)))
    x = axis_over(_values(speed for *_, speed, _ in known), LEFT, WIDTH - RIGHT, log=True)
    y = axis_over(_values(good for *_, good in known), HEIGHT - BOTTOM, TOP)
    spots = [
        Spot(
            number,
            speed.drawn(x),
            good.drawn(y),
            pareto,
            f"{label}: {short(speed.here)} times the baseline's speed, {quality.lower()} {short(good.here)}",
        )
        for number, label, pareto, speed, good in known
    ]
    best = sorted((spot.x.here, spot.y.here) for spot in spots if spot.pareto)
    # in steps: whoever wants more speed than one setting gives has to take the quality of the next
    line = f"M{best[0][0]} {best[0][1]}" + "".join(f"V{up}H{at}" for at, up in best[1:]) if len(best) > 1 else ""
    return Frontier(quality, x, y, spots, line)


def _speed(point: Mapping[str, Any]) -> Span | None:
    """Tokens per second over the baseline's."""
    figure = figure_of(point, "tokens_per_second")
    if figure is None or not is_number(figure["change"]) or figure["change"] <= 0:
        return None
    # a lower bound of 0 has no place on a logarithmic axis
    low, high = (figure[key] if is_number(figure[key]) and figure[key] > 0 else None for key in ("low", "high"))
    return Span(figure["change"], low, high)


def _quality(point: Mapping[str, Any], name: str, level: float) -> Span | None:
    """The baseline's, and the change from it on the prompts that both decoded: what the frontier is found by."""
    figure = figure_of(point, name)
    if figure is None or not is_number(level) or not is_number(figure["change"]):
        return None
    bounds = [figure[key] if is_number(figure[key]) else None for key in ("low", "high")]
    low, high = (None if bound is None else level + bound for bound in bounds)
    return Span(level + figure["change"], low, high)


def _values(spans: Any) -> list[float]:
    return [value for span in spans for value in span if value is not None]
