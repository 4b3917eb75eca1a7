"""The texts that negative prompts are drawn from: real ones first, then every generated one."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from ..errors import InputError


def same_text(text: str) -> str:
    """What two texts that differ in nothing but white space have in common."""
    return " ".join(text.split())


class Pool:
    """Different texts in the order in which they came.

    Args:
        texts: to begin with.
        kept_out: texts for evaluation, which must never stand in a prompt.

    Raises:
        InputError: one of `texts` is in `kept_out`.
    """

    def __init__(self, texts: Iterable[str], kept_out: Iterable[str] = ()) -> None:
        self._kept_out = {same_text(text) for text in kept_out}
        self._seen: set[str] = set()
        self.texts: list[str] = []
        for index, text in enumerate(texts):
            if same_text(text) in self._kept_out:
                raise InputError(
                    f"seed {index} ({text!r:.40}) is in the reference, which must be kept out of the pool: take it out "
                    "of one of the two"
                )
            self.add(text)

    def add(self, text: str) -> None:
        """Put a text in, unless it is empty, in already, or kept out."""
        key = same_text(text)
        if key and key not in self._seen and key not in self._kept_out:
            self._seen.add(key)
            self.texts.append(text)

    def draw(self, count: int, random: Random) -> list[int]:
        """Positions in `texts` of `count` different ones.

        Raises:
            InputError: the pool is smaller.
        """
        if count > len(self.texts):
            raise InputError(
                f"negative_examples is {count} and the pool has {len(self.texts)} different texts: "
                f"give {count - len(self.texts)} more seeds, or at most {len(self.texts)} negative examples"
            )
        return random.sample(range(len(self.texts)), count)
