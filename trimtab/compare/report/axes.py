"""From values to places in a drawing, and the ticks between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .numbers import short, with_minus

_APART = 52
"""Least distance of two ticks in a drawing, so that their labels never touch."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis and what is written there."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Linear or logarithmic.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place in the drawing, in its units.
        end: place in the drawing; less than `start` on an axis that points up.
        log: logarithmic; `low` is above 0 then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, here = (math.log(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value,
        )  # fmt: skip
        return round(self.start + (self.end - self.start) * (here - low) / (high - low), 2)

    @property
    def ticks(self) -> list[Tick]:
        """At round values, as many as there is room for."""
        most = max(2, round(abs(self.end - self.start) / _APART))
        values = _powers(self.low, self.high, most) if self.log else []
        if len(values) >= 3:
            return [Tick(self.at(value), short(value, 1)) for value in values]
        # a narrow stretch of a logarithmic axis is read like a linear one
        values, places = _steps(self.low, self.high, most)
        return [Tick(self.at(value), with_minus(f"{value:,.{places}f}")) for value in values]


def axis_over(values: Iterable[float], start: float, end: float, *, log: bool = False, margin: float = 0.06) -> Axis:
    """The axis that shows all values, with a margin on both sides.

    Args:
        values: what will be drawn; on a logarithmic axis those not above 0 are left out.
        start: as for `Axis`.
        end: as for `Axis`.
        log: as for `Axis`.
        margin: share of the stretch between the lowest and the highest value.
    """
    seen = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(seen), max(seen)) if seen else (1.0, 1.0)
    if log:
        # a stretch of nothing but rounding would blow noise up to the whole width
        pad = max(math.log(high / low) * margin, math.log(1.02))
        return Axis(low / math.exp(pad), high * math.exp(pad), start, end, log=True)
    pad = (high - low) * margin or abs(high) * margin or 1.0
    return Axis(low - pad, high + pad, start, end)


def _powers(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten, or 1 and 3 times, or themselves alone: as many as do not crowd."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def _steps(low: float, high: float, most: int) -> tuple[list[float], int]:
    """Multiples of 1, 2 or 5 times a power of ten, and the decimal places that they need."""
    power = math.floor(math.log10((high - low) / most))
    step, power = next(
        (factor * 10.0 ** (power + up), power + up)
        for up in (0, 1, 2)
        for factor in (1, 2, 5)
        if (high - low) / (factor * 10.0 ** (power + up)) <= most
    )
    # adding 0 makes a negative zero positive
    values = [round(count * step, 12) + 0.0 for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return values, max(0, -power)
