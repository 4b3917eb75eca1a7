"""Numbers as the report prints them."""

from __future__ import annotations

import math
from typing import Any

NONE = "\N{EN DASH}"
"""Stands for what was not measured."""


def is_number(value: Any) -> bool:
    """Whether it can be placed on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def with_minus(text: str) -> str:
    """A printed number with the sign that is as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def short(value: Any, digits: int = 3) -> str:
    """To significant digits, whole numbers in full, thousands apart; a dash for what is no finite number."""
    if not is_number(value):
        return NONE
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return with_minus(f"{value:,.0f}")
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return with_minus(f"{value:.{min(places, 9)}f}")


def ratios(*values: Any) -> list[str]:
    """Ratios that belong together, to as many places as tell them from 1."""
    near = [abs(value - 1) for value in values if is_number(value) and value != 1]
    places = 3 if near and min(near) < 0.01 else 2
    return [f"{value:.{places}f}" if is_number(value) and 0.1 <= value < 100 else short(value) for value in values]


def differences(*values: Any) -> list[str]:
    """Differences that belong together, with their signs."""
    seen = [abs(value) for value in values if is_number(value) and value]
    places = min(max(2 - math.floor(math.log10(max(seen))), 0), 9) if seen else 0
    return [with_minus(f"{value:+.{places}f}") if is_number(value) else NONE for value in values]


def p_value(value: Any) -> str:
    """As statistics prints it."""
    if not is_number(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
