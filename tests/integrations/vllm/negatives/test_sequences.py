"""Blocks, rounds and passes, over random groups: nobody's keys and values lie in another's blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.integrations.vllm.negatives.sequences import (
    BLOCK,
    BlockPool,
    Feed,
    NegativeGroup,
    NegativeSequence,
    blocks_for,
    passes,
    rounds,
)

MOST = 3
TOKENS = 200


def group(*lengths: int) -> NegativeGroup:
    return NegativeGroup(0.6, False, [NegativeSequence(list(range(length))) for length in lengths])


def held(*groups: NegativeGroup) -> list[int]:
    return [block for each in groups for sequence in each.sequences for block in sequence.blocks]


lengths = st.lists(st.integers(1, 50), min_size=1, max_size=MOST)


@given(st.lists(st.tuples(lengths, st.integers(0, 16)), min_size=1, max_size=12))
def test_every_group_that_fits_alone_is_read_in_some_round(requests):
    """Over several steps, in each of which all have grown by a token."""
    groups = [group(*each) for each, _ in requests]
    pool = BlockPool(TOKENS, MOST)
    for step in range(3):
        wanted = [(each, new + step) for each, (_, new) in zip(groups, requests, strict=True)]
        seen = []
        for batch in rounds(wanted, pool.size):
            here = [wanted[place] for place in batch]
            pool.hold(here, later=groups)
            seen += batch
            for each, new in here:
                for sequence in each.sequences:
                    assert len(sequence.blocks) == blocks_for(len(sequence.prompt) + new)
                    sequence.kept = len(sequence.prompt) + new
            taken = held(*groups)
            assert len(taken) == len(set(taken)) == pool.used <= pool.size
            for each in groups:
                for sequence in each.sequences:
                    assert sequence.kept <= BLOCK * len(sequence.blocks)
        assert sorted(seen) == list(range(len(groups)))
    for each in groups:
        pool.drop(each)
    assert pool.used == 0


def test_one_round_where_all_fit():
    pool = BlockPool(TOKENS, MOST)
    assert list(rounds([(group(10), 5), (group(20, 30), 0)], pool.size)) == [[0, 1]]


def test_groups_that_are_held_are_read_before_others_take_their_blocks():
    pool = BlockPool(2 * BLOCK, 0)
    first, second = group(BLOCK, BLOCK), group(BLOCK, BLOCK)
    assert list(rounds([(first, 0), (second, 0)], pool.size)) == [[0], [1]]
    pool.hold([(second, 0)], later=[first, second])
    assert list(rounds([(first, 0), (second, 0)], pool.size)) == [[1], [0]]


def test_groups_outside_the_step_lose_their_blocks_first():
    pool = BlockPool(3 * BLOCK, 0)
    inside, outside, new = group(BLOCK), group(BLOCK), group(BLOCK, BLOCK)
    pool.hold([(inside, 0), (outside, 0)], later=[])
    pool.hold([(new, 0)], later=[inside, new])
    assert held(inside)
    assert not held(outside)
    assert outside.sequences[0].kept == 0


def test_a_group_that_is_too_large_is_an_error():
    with pytest.raises(RuntimeError, match="4 blocks are needed for negative prompts, and 3 are free"):
        BlockPool(3 * BLOCK, 0).hold([(group(3 * BLOCK + 1), 0)], later=[])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=10), st.integers(1, 30), st.integers(1, 4))
def test_passes_read_every_token_once_and_in_order(counts, tokens, sequences):
    feeds = [Feed(NegativeSequence([]), place, 0, 5, 5 + count, True) for place, count in enumerate(counts)]
    read: dict[int, list[int]] = {place: [] for place in range(len(counts))}
    finished = []
    for part in passes(feeds, tokens, sequences):
        assert sum(feed.end - feed.start for feed in part) <= tokens
        assert len(part) <= sequences
        for feed in part:
            read[feed.place] += range(feed.start, feed.end)
            finished += [feed.place] if feed.last else []
    assert read == {place: list(range(5, 5 + count)) for place, count in enumerate(counts)}
    assert finished == list(range(len(counts)))
