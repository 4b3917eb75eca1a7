from __future__ import annotations

import math

import pytest

from trimtab.errors import InputError
from trimtab.integrations.vllm.negatives.requests import (
    Limits,
    Negatives,
    check_fits,
    requested_negatives,
    requested_plausibility,
)

LIMITS = Limits("", negatives=3, tokens=100, max_model_len=64)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({}, None),
        ({"other": 1, "trimtab_gamma": 2}, None),
        ({"trimtab_eta": 0}, None),
        ({"trimtab_negatives": ["a"]}, Negatives(("a",), 0.6, False)),
        ({"trimtab_negatives": ["a", "b"], "trimtab_eta": 1}, Negatives(("a", "b"), 1.0, False)),
        ({"trimtab_negatives": ["a"], "trimtab_eta": 0.0}, None),
        ({"trimtab_negatives": ["a"], "trimtab_eta": 2, "trimtab_balanced": 1}, Negatives(("a",), 2.0, True)),
        ({"trimtab_negatives": ["a"], "trimtab_balanced": False}, Negatives(("a",), 0.6, False)),
    ],
    ids=str,
)
def test_a_request_names_its_negatives(given, expected):
    assert requested_negatives(given) == expected


@pytest.mark.parametrize("value", ["a text", [], 7, None, {"a": 1}], ids=str)
def test_negatives_are_a_list(value):
    with pytest.raises(InputError, match=r"^trimtab_negatives is .*: give a list of at least one text"):
        requested_negatives({"trimtab_negatives": value})


@pytest.mark.parametrize("value", ["", 7, None, ["a"]], ids=str)
def test_each_is_a_text(value):
    with pytest.raises(InputError, match=r"^trimtab_negatives\[1\] is .*: give a text"):
        requested_negatives({"trimtab_negatives": ["a", value]})


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, 1e39, 10**400, "1", True, [1.0], None], ids=repr)
def test_eta_is_a_number(value):
    with pytest.raises(InputError, match=r"^trimtab_eta is .*: give a number of at least 0"):
        requested_negatives({"trimtab_negatives": ["a"], "trimtab_eta": value})


@pytest.mark.parametrize("value", [2, -1, 0.5, "yes", None, []], ids=repr)
def test_balanced_is_yes_or_no(value):
    with pytest.raises(InputError, match=r"^trimtab_balanced is .*: give true or false"):
        requested_negatives({"trimtab_negatives": ["a"], "trimtab_balanced": value})


def test_eta_alone_is_refused():
    with pytest.raises(InputError, match=r"trimtab_eta is 0\.6 and trimtab_negatives is missing"):
        requested_negatives({"trimtab_eta": 0.6})


def test_plausibility():
    assert requested_plausibility(None) == requested_plausibility({}) == 0
    assert requested_plausibility({"trimtab_plausibility": 0.1}) == 0.1
    for value in (-0.1, 1.1, math.nan, "0.1", True, None):
        with pytest.raises(InputError, match=r"^trimtab_plausibility is .*: give a number from 0 to 1"):
            requested_plausibility({"trimtab_plausibility": value})


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "message"),
    [
        ([1, 1, 1, 1], 4, "trimtab_negatives has 4 texts: give at most 3"),
        ([60], 6, r"trimtab_negatives\[0\] has 60 tokens, up to 5 .* context is 64: set max_tokens to 5 or less"),
        ([1, 64], 2, r"trimtab_negatives\[1\] has 64 tokens, .*: set max_tokens to 1 or less"),
        ([65], 1, r"trimtab_negatives\[0\] has 65 tokens, .*: give less text"),
        ([10], None, r"trimtab_negatives\[0\] has 10 tokens, .*: set max_tokens to 55 or less"),
        ([30, 40], 17, r"trimtab_negatives has 70 tokens, .*`negative_tokens` is 100: set max_tokens to 16 or less"),
        ([60, 60], 2, r"trimtab_negatives has 120 tokens, .*: give less text"),
        ([0], 2, "trimtab_negatives has a text without tokens"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(lengths, max_tokens, message):
    with pytest.raises(InputError, match=message):
        check_fits(LIMITS, lengths, max_tokens)


@pytest.mark.parametrize(("lengths", "max_tokens"), [([60], 5), ([64], 1), ([30, 40], 16), ([1, 1, 1], 33)])
def test_what_fits_exactly_is_taken(lengths, max_tokens):
    check_fits(LIMITS, lengths, max_tokens)


def test_an_engine_says_why_it_takes_none():
    with pytest.raises(InputError, match="this engine cannot keep them: it drafts"):
        check_fits(Limits("it drafts", 3, 100, 64), [], 4)
