"""Negative prompts of the requests in flight, and which of their keys and values are kept.

What is kept of a sequence is a function of its token ids alone: it may be dropped at any time, and is computed again
from them. So a preempted request costs a pass more, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 32
"""Tokens whose keys and values lie together; a size that vLLM's attention back ends take."""


@dataclass(eq=False)
class NegativeSequence:
    """One negative prompt and the generated tokens after it.

    Attributes:
        prompt: its token ids.
        kept: so many of its first tokens have their keys and values in `blocks`.
        blocks: of the pool.
    """

    prompt: list[int]
    kept: int = 0
    blocks: list[int] = field(default_factory=list)


@dataclass(eq=False)
class NegativeGroup:
    """Those of one request.

    Attributes:
        eta: how far to go away from them.
        balanced: as of `decoding.contrast.steer`.
        sequences: one or more.
    """

    eta: float
    balanced: bool
    sequences: list[NegativeSequence]

    def blocks_for(self, new: int) -> int:
        """That hold its prompts and `new` tokens after each."""
        return sum(blocks_for(len(sequence.prompt) + new) for sequence in self.sequences)


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens of one sequence."""
    return -(-tokens // BLOCK)


class BlockPool:
    """Hands out blocks to groups, and takes them away from others where there are none left.

    Args:
        tokens: that all sequences may have.
        sequences: of one group at most: each may leave a block partly empty.
    """

    def __init__(self, tokens: int, sequences: int) -> None:
        self.size = blocks_for(tokens) + sequences
        self._free = list(range(self.size))
        self._groups: dict[NegativeGroup, None] = {}

    @property
    def used(self) -> int:
        """Blocks in use."""
        return self.size - len(self._free)

    def drop(self, group: NegativeGroup) -> None:
        """Forget what is kept of a group."""
        for sequence in group.sequences:
            self._free += sequence.blocks
            sequence.blocks, sequence.kept = [], 0
        self._groups.pop(group, None)

    def hold(self, wanted: Sequence[tuple[NegativeGroup, int]], later: Sequence[NegativeGroup]) -> None:
        """Give each group the blocks for its prompts and so many new tokens.

        Others lose theirs if need be, those in `later` last.

        Raises:
            RuntimeError: the pool is too small for `wanted` alone.
        """
        needed = sum(max(0, group.blocks_for(new) - _held(group)) for group, new in wanted)
        staying = {group for group, _ in wanted}
        others = [group for group in self._groups if group not in staying]
        for group in sorted(others, key=later.__contains__):
            if needed <= len(self._free):
                break
            self.drop(group)
        if needed > len(self._free):
            raise RuntimeError(f"{needed} blocks are needed for negative prompts, and {len(self._free)} are free")
        for group, new in wanted:
            self._groups[group] = None
            for sequence in group.sequences:
                while len(sequence.blocks) < blocks_for(len(sequence.prompt) + new):
                    sequence.blocks.append(self._free.pop())


def _held(group: NegativeGroup) -> int:
    return sum(len(sequence.blocks) for sequence in group.sequences)


class Feed(NamedTuple):
    """Tokens `[start, end)` of a sequence, to be read in one pass.

    Attributes:
        place: of the sequence among all of the step.
        owner: place of its group among `wanted`.
        last: whether they are the last that are wanted of it.
    """

    sequence: NegativeSequence
    place: int
    owner: int
    start: int
    end: int
    last: bool


def rounds(wanted: Sequence[tuple[NegativeGroup, int]], size: int) -> Iterator[list[int]]:
    """Places in `wanted` of groups that the pool holds together; one round unless it is too small for all.

    Groups that are held already come first, so that they are read on before others take their blocks.
    """
    batch: list[int] = []
    blocks = 0
    for place in sorted(range(len(wanted)), key=lambda place: not _held(wanted[place][0])):
        group, new = wanted[place]
        needed = group.blocks_for(new)
        if batch and blocks + needed > size:
            yield batch
            batch, blocks = [], 0
        batch.append(place)
        blocks += needed
    if batch:
        yield batch


def passes(feeds: Sequence[Feed], tokens: int, sequences: int) -> Iterator[list[Feed]]:
    """Cut into passes of at most so many tokens and sequences."""
    batch: list[Feed] = []
    room = tokens
    for feed in feeds:
        start = feed.start
        while start < feed.end:
            if not room or len(batch) == sequences:
                yield batch
                batch, room = [], tokens
            end = min(feed.end, start + room)
            batch.append(feed._replace(start=start, end=end, last=feed.last and end == feed.end))
            room -= end - start
            start = end
    if batch:
        yield batch
