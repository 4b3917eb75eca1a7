"""What an entropy-adaptive call did: by row, by model, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from ...decoding.entropy_gate import relative_cost
from .timed import Timed

Speaker = Literal["small", "large"]
SPEAKERS: tuple[Speaker, ...] = get_args(Speaker)


def _zeros() -> dict[Speaker, int]:
    return {"small": 0, "large": 0}


@dataclass
class RowStats:
    """One row.

    Attributes:
        speakers: the model that wrote each token.
        entropies: its entropy at that token, in bits, before temperature and processors.
        forward_tokens: tokens that each model was fed, the prompt included.
        catch_up_passes: passes that fed a model what it had missed since it last wrote; its first prompt counts only
            together with tokens of the other model.
        catch_up_tokens: of `forward_tokens`, those beyond the prompt and the one that every pass needs.
    """

    speakers: list[Speaker] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    forward_tokens: dict[Speaker, int] = field(default_factory=_zeros)
    catch_up_passes: dict[Speaker, int] = field(default_factory=_zeros)
    catch_up_tokens: dict[Speaker, int] = field(default_factory=_zeros)

    @property
    def tokens(self) -> dict[Speaker, int]:
        """Tokens that each model wrote: also the number of passes in which the row took part."""
        return {speaker: self.speakers.count(speaker) for speaker in SPEAKERS}

    @property
    def switches(self) -> int:
        """Changes of the writing model between two tokens."""
        return sum(a != b for a, b in pairwise(self.speakers))

    @property
    def trace(self) -> list[tuple[float, Speaker]]:
        """Entropy and model of each token."""
        return list(zip(self.entropies, self.speakers, strict=True))


@dataclass
class EntropyAdaptiveStats(Timed):
    """One call.

    Attributes:
        rows: by row of the batch.
        small_cost: a token of the small model in tokens of the large one: the ratio of their parameters, with
            `small="low-bit"` of the bytes of their weights.
        passes: forward passes of each model over any number of rows.
        seconds: by phase: `small`, `large` (their passes, prompts included), `sample` (entropy, processors, choice),
            `total`.
    """

    rows: list[RowStats]
    small_cost: float
    passes: dict[Speaker, int] = field(default_factory=_zeros)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> dict[Speaker, int]:
        """Tokens that each model wrote, all rows."""
        return _summed([row.tokens for row in self.rows])

    @property
    def forward_tokens(self) -> dict[Speaker, int]:
        """Tokens that each model was fed, prompts included, all rows."""
        return _summed([row.forward_tokens for row in self.rows])

    @property
    def catch_up_passes(self) -> dict[Speaker, int]:
        """Rows' passes over a gap, all rows."""
        return _summed([row.catch_up_passes for row in self.rows])

    @property
    def catch_up_tokens(self) -> dict[Speaker, int]:
        """Tokens fed in them beyond the one that every pass needs, all rows."""
        return _summed([row.catch_up_tokens for row in self.rows])

    @property
    def switches(self) -> int:
        """Changes of the writing model, all rows."""
        return sum(row.switches for row in self.rows)

    @property
    def new_tokens(self) -> int:
        """Tokens released, all rows."""
        return sum(self.tokens.values())

    @property
    def large_share(self) -> float:
        """Share of the tokens that the large model wrote."""
        return self.tokens["large"] / self.new_tokens if self.new_tokens else 0.0

    @property
    def cost(self) -> float:
        """The paper's metric, 1 for the large model alone: `large_share + (1 - large_share) * small_cost`.

        It leaves out prompts, switches and catch-up: `forward_tokens`, `passes` and `seconds` have them.
        """
        return relative_cost(self.large_share, self.small_cost)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the traces."""
        return {
            "new_tokens": self.new_tokens,
            "tokens": self.tokens,
            "large_share": round(self.large_share, 4),
            "cost": round(self.cost, 4),
            "switches": self.switches,
            "passes": dict(self.passes),
            "forward_tokens": self.forward_tokens,
            "catch_up_passes": self.catch_up_passes,
            "catch_up_tokens": self.catch_up_tokens,
            "seconds": {phase: round(seconds, 6) for phase, seconds in self.seconds.items()},
        }


def _summed(counts: Sequence[dict[Speaker, int]]) -> dict[Speaker, int]:
    return {speaker: sum(count[speaker] for count in counts) for speaker in SPEAKERS}
