"""What each prompt took on two sides, over all rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..records import SIDES

Record = Mapping[str, Any]
Pair = tuple[Record, Record]


@dataclass(frozen=True, slots=True)
class Totals:
    """Of one side, over the rounds in which neither side failed."""

    tokens: int
    seconds: float
    right: float | None

    @property
    def rate(self) -> float | None:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds > 0 and self.tokens else None


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt.

    Attributes:
        id: of the prompt.
        group: the task it is reported under.
        rounds: rounds in which neither side failed.
        same: of these, rounds in which both sides wrote the same text.
        a: totals of side A, None without such a round.
        b: totals of side B.
    """

    id: str
    group: str
    rounds: int
    same: int
    a: Totals | None
    b: Totals | None

    @property
    def ratio(self) -> float | None:
        """Tokens per second of B over those of A."""
        if self.a is None or self.b is None or not self.a.rate or not self.b.rate:
            return None
        return self.b.rate / self.a.rate


def pairs_of(records: Iterable[Record], sides: tuple[str, str] = SIDES) -> dict[str, dict[int, Pair]]:
    """Two sides' records of each prompt by round, where neither failed; prompts in the order in which they appear."""
    found: dict[str, dict[int, dict[str, Record]]] = {}
    for record in records:
        found.setdefault(record["id"], {}).setdefault(record["round"], {})[record["side"]] = record
    return {
        name: {
            number: (both[sides[0]], both[sides[1]])
            for number, both in sorted(rounds.items())
            if all(side in both and not both[side]["error"] for side in sides)
        }
        for name, rounds in found.items()
    }


def rows_of(records: Iterable[Record]) -> list[PromptRow]:
    """One row for each prompt."""
    kept = list(records)
    groups = {record["id"]: record["group"] for record in kept}
    return [_row(name, groups[name], list(rounds.values())) for name, rounds in pairs_of(kept).items()]


def _row(name: str, group: str, pairs: list[Pair]) -> PromptRow:
    if not pairs:
        return PromptRow(name, group, 0, 0, None, None)
    same = sum(a["text"] == b["text"] for a, b in pairs)
    return PromptRow(name, group, len(pairs), same, _totals([a for a, _ in pairs]), _totals([b for _, b in pairs]))


def _totals(records: list[Record]) -> Totals:
    scores = [record["right"] for record in records if record["right"] is not None]
    return Totals(
        sum(record["tokens"] for record in records),
        sum(record["seconds"] for record in records),
        sum(scores) / len(scores) if scores else None,
    )
