"""Prompt lookup against a naive search, through any history of appends and rollbacks."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decoding.prompt_lookup import PromptLookup

TOKENS = st.lists(st.integers(0, 3), max_size=40)
NGRAMS = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.lists(st.integers(0, 2), max_size=12)),
        st.tuples(st.just("truncate"), st.integers(0, 30)),
        st.tuples(st.just("draft"), st.integers(0, 12)),
    ),
    max_size=25,
)


def naive_draft(tokens: list[int], count: int, max_ngram: int, min_ngram: int) -> list[int]:
    """Search backwards for the longest suffix that occurred before; copy what followed, growing as it goes."""
    end = len(tokens)
    for size in range(max_ngram, min_ngram - 1, -1):
        for start in range(end - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[end - size :]:
                grown = list(tokens)
                for index in range(start + size, start + size + count):
                    grown.append(grown[index])
                return grown[end:]
    return []


@settings(max_examples=300, deadline=None)
@given(tokens=TOKENS, count=st.integers(0, 12), ngrams=NGRAMS)
def test_draft_is_what_a_backward_search_finds(tokens: list[int], count: int, ngrams: list[int]) -> None:
    """Longest n-gram first, then the latest occurrence, then its continuation to the full count."""
    low, high = ngrams
    lookup = PromptLookup(high, low)
    lookup.extend(tokens)
    assert lookup.draft(count) == naive_draft(tokens, count, high, low)


@settings(max_examples=300, deadline=None)
@given(operations=OPERATIONS, ngrams=NGRAMS)
def test_any_history_answers_as_a_fresh_index(operations: list[tuple[str, Any]], ngrams: list[int]) -> None:
    """After every step of any mix of extend, truncate and draft, only the tokens that remain matter."""
    low, high = ngrams
    lookup = PromptLookup(high, low)
    tokens: list[int] = []
    for name, argument in operations:
        getattr(lookup, name)(argument)
        if name == "extend":
            tokens = tokens + argument
        elif name == "truncate":
            tokens = tokens[:argument]
        fresh = PromptLookup(high, low)
        fresh.extend(tokens)
        assert lookup.tokens == tokens
        assert lookup.draft(9) == fresh.draft(9) == naive_draft(tokens, 9, high, low)


@settings(max_examples=100, deadline=None)
@given(kept=TOKENS, forgotten=TOKENS, after=TOKENS)
def test_forgotten_tokens_leave_no_trace(kept: list[int], forgotten: list[int], after: list[int]) -> None:
    """Appending and taking back is the same as never having appended, for every sequence that may follow."""
    lookup, fresh = PromptLookup(), PromptLookup()
    lookup.extend(kept + forgotten)
    lookup.truncate(len(kept))
    fresh.extend(kept)
    for token in after:
        lookup.extend([token])
        fresh.extend([token])
        assert lookup.draft(6) == fresh.draft(6)


@pytest.mark.parametrize("period", [1, 2, 3, 4, 7])
def test_repeating_passage_is_drafted_in_full(period: int) -> None:
    """A passage seen once and begun again is continued for any count, also beyond the end of the sequence."""
    passage = list(range(period))
    lookup = PromptLookup()
    lookup.extend(passage + passage[:1])
    assert lookup.draft(20) == [(1 + index) % period for index in range(20)]


def test_longer_ngram_wins_over_later_occurrence() -> None:
    """`1 2` followed by 7 is older than `2` followed by 8, and longer."""
    lookup = PromptLookup()
    lookup.extend([1, 2, 7, 3, 2, 8, 1, 2])
    assert lookup.draft(1) == [7]
    shorter = PromptLookup(max_ngram=1)
    shorter.extend([1, 2, 7, 3, 2, 8, 1, 2])
    assert shorter.draft(1) == [8]


def test_min_ngram_rejects_shorter_matches() -> None:
    """With a minimum of 2, one common token is no match."""
    lookup = PromptLookup(max_ngram=3, min_ngram=2)
    lookup.extend([1, 2, 3, 2])
    assert lookup.draft(5) == []


def test_nothing_to_draft() -> None:
    """No tokens, one token, no repetition, or a count of 0: an empty draft."""
    lookup = PromptLookup()
    assert lookup.draft(5) == []
    lookup.extend([4])
    assert lookup.draft(5) == []
    lookup.extend([5, 6])
    assert lookup.draft(5) == []
    lookup.extend([4])
    assert lookup.draft(0) == []


def test_truncate_to_current_or_greater_length_changes_nothing() -> None:
    """Only tokens beyond `length` are forgotten."""
    lookup = PromptLookup()
    lookup.extend([1, 2, 1])
    lookup.truncate(3)
    lookup.truncate(100)
    assert lookup.tokens == [1, 2, 1]
    assert lookup.draft(2) == [2, 1]


def test_extend_takes_any_iterable() -> None:
    """A generator is consumed once."""
    lookup = PromptLookup()
    lookup.extend(token % 3 for token in range(7))
    assert lookup.tokens == [0, 1, 2, 0, 1, 2, 0]
    assert lookup.draft(4) == [1, 2, 0, 1]


@pytest.mark.parametrize("vocab", [50, 10**9], ids=["repetitive", "without repetition"])
def test_cost_does_not_grow_with_length(vocab: int) -> None:
    """One step (append, draft, take back) at 100k tokens costs less than 10 times one at 1k; a search costs 100."""
    source = random.Random(0)

    def best_step(length: int) -> float:
        lookup = PromptLookup()
        lookup.extend(source.randrange(vocab) for _ in range(length))
        best = float("inf")
        for _ in range(300):
            begin = time.perf_counter()
            lookup.extend([7, 8])
            lookup.draft(5)
            lookup.truncate(length)
            best = min(best, time.perf_counter() - begin)
        return best

    assert best_step(100_000) < 10 * best_step(1_000)


@pytest.mark.parametrize(("high", "low"), [(3, 0), (0, 0), (1, 2), (3, -1), (-1, -2)])
def test_bad_ngram_lengths(high: int, low: int) -> None:
    """Lengths that are not `1 <= min <= max` are refused, with both values in the message."""
    with pytest.raises(ValueError, match=f"min {low} and max {high}"):
        PromptLookup(high, low)
