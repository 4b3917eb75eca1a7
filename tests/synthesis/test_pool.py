from __future__ import annotations

from random import Random

import pytest

from trimtab import InputError
from trimtab.synthesis.pool import Pool


def test_only_different_texts_that_may_be_shown_enter() -> None:
    pool = Pool(["One two.", " One  two.\n", "Three."], ["Held out."])
    for text in ("Three.", "", "  \n", "Held\nout. ", "Four."):
        pool.add(text)
    assert pool.texts == ["One two.", "Three.", "Four."]


def test_draws_are_different_texts_and_follow_the_generator() -> None:
    pool = Pool(map(str, range(20)))
    drawn = pool.draw(10, Random(3))
    assert len(set(drawn)) == 10
    assert drawn == pool.draw(10, Random(3)) != pool.draw(10, Random(4))
    assert sorted(pool.draw(20, Random(3))) == list(range(20))


def test_each_text_is_drawn_equally_often() -> None:
    """Chi-squared with 9 degrees of freedom: a fair draw exceeds 27.9 once in a thousand seeds; the seed is fixed."""
    pool, random = Pool(map(str, range(10))), Random(0)
    counts = [0] * 10
    for _ in range(4000):
        for position in pool.draw(3, random):
            counts[position] += 1
    assert sum((count - 1200) ** 2 / 1200 for count in counts) < 27.9


def test_what_cannot_be_drawn_or_shown_is_refused() -> None:
    with pytest.raises(InputError, match=r"negative_examples is 3 and the pool has 2 different texts: give 1 more"):
        Pool(["a", "b", "b "]).draw(3, Random(0))
    with pytest.raises(InputError, match=r"seed 1 \('b  c'\) is in the reference"):
        Pool(["a", "b  c"], ["b c"])
