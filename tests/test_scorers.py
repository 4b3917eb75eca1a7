from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab import InputError
from trimtab.scorers import SCORERS, best_score, contains, exact, last_number, load_scorer, normalized, number


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [("  Paris. ", "paris", 1), ("PARIS\n", "Paris", 1), ("Paris, France", "Paris", 0), ("?!", "?!", 1), ("", "x", 0)],
)
def test_exact(text: str, answer: str, expected: float) -> None:
    assert exact(text, answer) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("The capital is Paris.", "paris", 1),
        ("Comparison", "paris", 0),
        ("it costs\n 3.50 euros", "costs 3.50", 1),
        ("a.c", "abc", 0),
        ("naïve", "naïve", 1),  # composed and not
    ],
)
def test_contains(text: str, answer: str, expected: float) -> None:
    assert contains(text, answer) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("so 3 + 4 = 7.", "Three and four.\n#### 7", 1),
        ("That makes $1,200.00", "#### 1200", 1),
        ("7, then 8", "7", 0),
        ("minus -5", "5", 0),
        ("none", "7", 0),
        ("none", "none either", 0),
    ],
)
def test_number(text: str, answer: str, expected: float) -> None:
    assert number(text, answer) == expected


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=2, allow_nan=False))
def test_numbers_are_read_back(value: Decimal) -> None:
    assert last_number(f"1 and 2, so the result is {value:,} metres.") == value


@given(st.text())
def test_normalising_twice_is_normalising_once_and_a_text_equals_itself(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)
    assert exact(text, text) == 1


def test_the_best_answer_counts() -> None:
    assert best_score(exact, "NYC", ["New York", "nyc"]) == 1
    assert best_score(lambda text, answer: len(text) / len(answer), "ab", ["abcd", "ab"]) == 1


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), None, "1"])
def test_a_scorer_that_gives_no_score_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="the scorer gave"):
        best_score(lambda text, answer: value, "text", ["answer"])  # type: ignore[arg-type, return-value]


def test_a_scorer_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def grade(text, answer):\n    return len(text) - len(answer)\n")
    assert load_scorer(f"{path}:grade")("abc", "a") == 2
    assert load_scorer("exact") is SCORERS["exact"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numbr", "did you mean number"),
        ("bleu", "use one of exact, contains, number"),
        ("none.py:grade", "is no Python file"),
        ("{}:none", "has no function 'none'"),
    ],
)
def test_unknown_scorers_are_refused(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    with pytest.raises(InputError, match=message):
        load_scorer(name.format(path))


def test_a_scorer_file_that_fails_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(InputError, match="ModuleNotFoundError"):
        load_scorer(f"{path}:grade")
