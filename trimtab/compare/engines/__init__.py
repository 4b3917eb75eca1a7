"""What decodes: one module for each engine, all with the same face."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from ..prompts import Prompt
from ..records import TracedToken


@dataclass(frozen=True, slots=True)
class Generated:
    """What an engine made of one prompt; attributes as in `records.Record`."""

    text: str
    tokens: int
    prompt_tokens: int | None
    seconds: float
    first_token_seconds: float | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    trace: list[TracedToken] = field(default_factory=list)


class Decoder(Protocol):
    """One side, ready."""

    def decode(self, prompt: Prompt, seed: int, max_new_tokens: int) -> Generated:
        """Decode one prompt and time it.

        Args:
            prompt: what to say.
            seed: of sampling; the same gives the same text where the engine can promise that.
            max_new_tokens: the text ends there at the latest.

        Raises:
            Exception: of whatever kind, where this prompt cannot be decoded.
        """
        ...

    def close(self) -> None:
        """Let go of models and connections."""
        ...
