from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.synthesis.ngrams import copies, distinct_n, diversity, duplicates, repetition, self_bleu, words

TEXTS = st.lists(st.lists(st.sampled_from("abcd"), min_size=4, max_size=12).map(" ".join), min_size=2, max_size=6)


def test_words_are_runs_and_marks() -> None:
    assert words("It's 3 o'clock, élan_2!") == ["It", "'", "s", "3", "o", "'", "clock", ",", "élan_2", "!"]


def test_by_hand() -> None:
    # 3-grams: abc bca cab abc | abc bcd: 4 different of 6
    assert distinct_n(["a b c a b c", "a b c d"], 3) == pytest.approx(4 / 6)
    # 2-grams of the first text: ab bc ca ab bc, 2 of 5 repeated; none in the second
    assert repetition(["a b c a b c", "a b c d"], 2) == pytest.approx((2 / 5 + 0) / 2)
    # first text: 3/5, 3/4, 3/3
    assert diversity(["a b c a b c", "a b c d"]) == pytest.approx((3 / 5 * 3 / 4 + 1) / 2)
    assert duplicates(["a b", "a  b", "c", "", " "]) == 2
    assert copies(["a  b", "a b", "c"], ["a b\n"]) == 2


def test_texts_that_are_too_short_do_not_count() -> None:
    assert repetition(["a", "a b a b"], 2) == repetition(["a b a b"], 2)
    assert math.isnan(distinct_n(["a b"], 3))
    assert math.isnan(repetition(["a"], 2))
    assert math.isnan(diversity(["a b c"]))
    assert math.isnan(self_bleu(["a b c d", "a b"]))


@given(TEXTS)
def test_ranges(texts: list[str]) -> None:
    assert 0 < distinct_n(texts, 3) <= 1
    assert 0 <= repetition(texts, 2) < 1
    assert 0 < diversity(texts) <= 1
    assert distinct_n([*texts, *texts], 2) == pytest.approx(distinct_n(texts, 2) / 2)


@given(TEXTS)
def test_self_bleu_is_the_definition(texts: list[str]) -> None:
    """BLEU-4 with clipped counts over all other texts, written without the counting of the two largest."""
    tokens = [text.split() for text in texts]
    scores = []
    for index, found in enumerate(tokens):
        others = tokens[:index] + tokens[index + 1 :]
        product = 1.0
        for n in (1, 2, 3, 4):
            grams = Counter(tuple(found[k : k + n]) for k in range(len(found) - n + 1))
            matched = sum(
                min(
                    count,
                    max(sum(tuple(other[k : k + n]) == gram for k in range(len(other) - n + 1)) for other in others),
                )
                for gram, count in grams.items()
            )
            product *= (matched or 0.1) / sum(grams.values())
        nearest = min((abs(len(other) - len(found)), len(other)) for other in others)[1]
        scores.append(product**0.25 * (1.0 if len(found) >= nearest else math.exp(1 - nearest / len(found))))
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(scores))
