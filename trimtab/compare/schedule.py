"""In which order the sides decode the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Turn(NamedTuple):
    """One prompt to be decoded by one side.

    Attributes:
        round: from 0; each round decodes every prompt once with each side.
        prompt: its place in the order of the prompts.
        side: which one.
        first: whether this side goes before the others here.
    """

    round: int
    prompt: int
    side: str
    first: bool


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """The items beginning with another one each turn, so that none always comes first."""
    start = turn % len(items) if items else 0
    return [*items[start:], *items[:start]]


def turns(sides: Sequence[str], prompts: int, rounds: int) -> Iterator[list[Turn]]:
    """Prompt by prompt, all sides on one before the next.

    At this grain load that comes and goes on the machine meets all sides, and since another side begins each time, so
    does what drifts within a prompt's turns. A prompt's first side is another one in each round.
    """
    for number in range(rounds):
        for prompt in range(prompts):
            order = rotated(sides, number + prompt)
            yield [Turn(number, prompt, side, side == order[0]) for side in order]
