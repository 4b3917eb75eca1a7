"""Figures as rows of a table with their intervals drawn beside them (a forest plot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .axes import Axis, axis_over
from .numbers import NONE, differences, is_number, p_value, ratios, short

WIDTH = 260
"""Of a row's drawing, in its own units."""

# what a reader is told of each: its name, and a note beside it
_LABELS = {
    "tokens_per_second": ("Tokens per second", "more is better"),
    "first_token_seconds": ("Seconds to the first token", "less is better"),
    "seconds_per_token": ("Seconds per token", "less is better"),
    "seconds": ("Seconds", "less is better"),
    "tokens": ("Tokens written", ""),
    "accuracy": ("Accuracy", "more is better"),
    "agreement": ("Text in common", "before the first difference"),
}


def label_of(name: str) -> str:
    """A figure's name for readers."""
    return _LABELS[name][0] if name in _LABELS else name.replace("_", " ").capitalize()


@dataclass(frozen=True, slots=True)
class Mark:
    """An estimate and its interval in a drawing; bounds beyond the axis end at its edge."""

    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, printed; `mark` is None where there is nothing to draw."""

    label: str
    note: str
    a: str
    b: str
    change: str
    interval: str
    verdict: str
    p_value: str
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class Forest:
    """Rows that share an axis.

    Attributes:
        kind: `ratio` or `difference`.
        axis: over all estimates and bounds.
        none: where no change is.
        rows: from top to bottom.
    """

    kind: str
    axis: Axis
    none: float
    rows: list[Row]


def forests(figures: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None) -> list[Forest]:
    """Ratios on a logarithmic axis, differences on a linear one.

    Args:
        figures: of a comparison's JSON.
        labels: for each figure what to call its row, instead of the figure's name.
    """
    named = list(zip(figures, labels or [""] * len(figures), strict=True))
    found = [_forest(kind, [pair for pair in named if pair[0]["kind"] == kind]) for kind in ("ratio", "difference")]
    return [forest for forest in found if forest.rows]


def _forest(kind: str, named: Sequence[tuple[Mapping[str, Any], str]]) -> Forest:
    ratio = kind == "ratio"
    none = 1.0 if ratio else 0.0
    drawn = [figure[key] for figure, _ in named for key in ("change", "low", "high") if is_number(figure[key])]
    axis = axis_over([none, *drawn], 8, WIDTH - 8, log=ratio)
    return Forest(kind, axis, axis.at(none), [_row(figure, label, axis) for figure, label in named])


def _row(figure: Mapping[str, Any], label: str, axis: Axis) -> Row:
    printed = ratios if figure["kind"] == "ratio" else differences
    change, low, high = printed(figure["change"], figure["low"], figure["high"])
    bounded = is_number(figure["low"]) and is_number(figure["high"])
    return Row(
        label=label or label_of(figure["name"]),
        note="" if label else _LABELS.get(figure["name"], ("", ""))[1],
        a=short(figure["a"]),
        b=short(figure["b"]),
        change=change,
        interval=f"{low} to {high}" if bounded else NONE,
        verdict=figure["verdict"],
        p_value=p_value(figure.get("p_value")),
        mark=_mark(figure, axis),
    )


def _mark(figure: Mapping[str, Any], axis: Axis) -> Mark | None:
    def at(value: Any) -> float | None:
        return axis.at(value) if is_number(value) and (value > 0 or not axis.log) else None

    here, low, high = at(figure["change"]), at(figure["low"]), at(figure["high"])
    if here is None:
        return None
    # a ratio's lower bound may be 0, which a logarithmic axis does not have
    return Mark(here, axis.start if low is None and high is not None else low, high)
