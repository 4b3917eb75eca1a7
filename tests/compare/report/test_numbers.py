from __future__ import annotations

import pytest

from trimtab.compare.report.numbers import differences, p_value, ratios, short

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (7680, "7,680"),
        (1234.5, "1,234"),
        (27.25, "27.2"),
        (0.104_99, "0.105"),
        (0.000_123_4, "0.000123"),
        (-3.0, f"{MINUS}3.00"),
        (0.0, "0"),
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
        (True, "\N{EN DASH}"),
    ],
)
def test_significant_digits(value: object, printed: str) -> None:
    assert short(value) == printed


def test_ratios_tell_themselves_from_1() -> None:
    assert ratios(1.85, 1.712, 2.019) == ["1.85", "1.71", "2.02"]
    assert ratios(1.006, 1.002, 1.010) == ["1.006", "1.002", "1.010"]
    assert ratios(250.0, None, 1000.0) == ["250", "\N{EN DASH}", "1,000"]


def test_differences_have_signs_and_one_number_of_places() -> None:
    assert differences(-0.05, -0.2, 0.1) == [f"{MINUS}0.050", f"{MINUS}0.200", "+0.100"]


@pytest.mark.parametrize(("value", "printed"), [(0.0004, "p < 0.001"), (0.754, "p = 0.754"), (None, "")])
def test_p_values(value: float | None, printed: str) -> None:
    assert p_value(value) == printed
