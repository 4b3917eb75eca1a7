"""Places of every mark in the report's plots; the templates draw them in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .axes import Axis, axis_over
from .numbers import short
from .per_prompt import PromptRow

WIDTH = 430
"""Of a plot, in its own units: wide enough for its text to be read when it is scaled to a telephone."""

LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 44
"""Margins of a plot with both axes."""

_ROW = 44
_RADIUS = 4.0

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "plus")
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Style:
    """How a group is told from the others: by shape as well as by colour."""

    shape: str
    colour: int


def styles(groups: Sequence[str]) -> dict[str, Style]:
    """One for each group, the same in every plot; they repeat after 36."""
    return {
        group: Style(SHAPES[place % len(SHAPES)], (place + place // len(SHAPES)) % COLOURS)
        for place, group in enumerate(groups)
    }


@dataclass(frozen=True, slots=True)
class Dot:
    """One prompt in a plot."""

    x: float
    y: float
    style: Style
    title: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """A against B, one dot a prompt, both axes over the same values."""

    name: str
    label: str
    x: Axis
    y: Axis
    dots: list[Dot]
    height: int = WIDTH
    width: int = WIDTH


def scatter(rows: Sequence[PromptRow], by_group: dict[str, Style], *, seconds: bool) -> Scatter | None:
    """Tokens per second, or seconds, of each prompt; None without a prompt that both sides answered."""
    drawn = []
    for row in rows:
        if row.a is None or row.b is None:
            continue
        a, b = (row.a.seconds, row.b.seconds) if seconds else (row.a.rate, row.b.rate)
        if a and b and a > 0 and b > 0:
            drawn.append((row, a / row.rounds, b / row.rounds) if seconds else (row, a, b))
    if not drawn:
        return None
    values = [value for _, a, b in drawn for value in (a, b)]
    x = axis_over(values, LEFT, WIDTH - RIGHT, log=True)
    y = axis_over(values, WIDTH - BOTTOM, TOP, log=True)
    unit = "s" if seconds else "tokens/s"
    dots = [
        Dot(x.at(a), y.at(b), by_group[row.group], f"{row.id} ({row.group}): A {short(a)}, B {short(b)} {unit}")
        for row, a, b in drawn
    ]
    name, label = ("seconds", "seconds") if seconds else ("rate", "tokens per second")
    return Scatter(name, label, x, y, dots)


@dataclass(frozen=True, slots=True)
class Strip:
    """Prompts of one group along the axis, and the median."""

    label: str
    y: float
    median: float
    median_label: str
    dots: list[Dot]
    radius: float


@dataclass(frozen=True, slots=True)
class Strips:
    """One strip for each group; `none` is where both sides are even."""

    x: Axis
    none: float
    strips: list[Strip]
    height: int
    width: int = WIDTH


def ratio_strips(rows: Sequence[PromptRow], by_group: dict[str, Style]) -> Strips | None:
    """How the ratio of tokens per second, B over A, spreads over prompts; None without any."""
    ratios = {
        group: sorted((row.ratio, row.id) for row in rows if row.group == group and row.ratio) for group in by_group
    }
    ratios = {group: found for group, found in ratios.items() if found}
    if not ratios:
        return None
    x = axis_over([1.0, *(ratio for found in ratios.values() for ratio, _ in found)], 12, WIDTH - RIGHT, log=True)
    strips = []
    for place, (group, found) in enumerate(ratios.items()):
        y = TOP + 24 + place * (_ROW + 22) + _ROW / 2
        middle = _median([ratio for ratio, _ in found])
        radius, places = _swarm([x.at(ratio) for ratio, _ in found])
        dots = [
            Dot(at, round(y + up, 2), by_group[group], f"{name} ({group}): {short(ratio)}")
            for (at, up), (ratio, name) in zip(places, found, strict=True)
        ]
        strips.append(Strip(f"{group} (n = {len(found)})", y, x.at(middle), short(middle), dots, radius))
    return Strips(x, x.at(1.0), strips, math.ceil(strips[-1].y + _ROW / 2 + BOTTOM))


def _swarm(places: Sequence[float]) -> tuple[float, list[tuple[float, float]]]:
    """Stack what would overlap, evenly about the middle: the dots' radius, and each one's place and height."""
    columns: dict[int, list[int]] = {}
    for index, at in enumerate(places):
        columns.setdefault(math.floor(at / (2 * _RADIUS)), []).append(index)
    highest = max(map(len, columns.values()))
    step = min(2 * _RADIUS, _ROW / highest)
    found = [(0.0, 0.0)] * len(places)
    for members in columns.values():
        for height, index in enumerate(members):
            found[index] = (places[index], (height - (len(members) - 1) / 2) * step)
    return max(min(_RADIUS, step / 2), 1.0), found


def _median(values: Sequence[float]) -> float:
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else math.sqrt(values[middle - 1] * values[middle])


def as_legend(by_group: dict[str, Style]) -> list[tuple[str, Style]]:
    """Groups in order; nothing where there is only one."""
    return list(by_group.items()) if len(by_group) > 1 else []
