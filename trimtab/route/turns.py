"""One answer: the two servers take turns as the gate says, and each goes on with what the other wrote."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .backend import SPEAKERS, Backend, Piece, Speaker, Token
from .errors import BackendLostError
from .gate import RangeGate
from .metrics import Metrics
from .requests import Asked

OnLost = Literal["fail", "large", "other"]
"""What a request does when a server is lost: end with an error; go on with the large model if the small one's is lost,
which costs time but no quality; go on with whichever is left."""
ON_LOST: tuple[OnLost, ...] = get_args(OnLost)


@dataclass(slots=True)
class Statistics:
    """Of one answer.

    Attributes:
        tokens: by model.
        switches: changes of the writer, those for want of a server included.
        uncertain: tokens after which the exact entropy could have decided otherwise.
        lost: models whose servers were lost, in order, or had been a short time before.
        instead: tokens written for a model whose server was lost.
    """

    tokens: dict[Speaker, int] = field(default_factory=lambda: dict.fromkeys(SPEAKERS, 0))
    switches: int = 0
    uncertain: int = 0
    lost: list[Speaker] = field(default_factory=list)
    instead: int = 0

    @property
    def large_share(self) -> float:
        """Share of the tokens that the large model wrote."""
        return self.tokens["large"] / max(sum(self.tokens.values()), 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "large_share": round(self.large_share, 4),
            "tokens": dict(self.tokens),
            "switches": self.switches,
            "uncertain": self.uncertain,
            "lost": list(self.lost),
            "instead": self.instead,
        }


@dataclass(frozen=True, slots=True)
class Written:
    """A token of the answer, or only its end.

    Attributes:
        token: its id, or None.
        finish_reason: `"stop"` or `"length"` with the last one.
        stop_reason: the id that ended the text, if the request had named it.
    """

    token: int | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Turns:
    """Who writes one answer.

    Args:
        backends: by model.
        asked: the request.
        room: tokens that the answer may have.
        headers: of the client's request that go along.
        on_lost: see OnLost.
        metrics: of the proxy.
    """

    def __init__(
        self,
        backends: Mapping[Speaker, Backend],
        asked: Asked,
        *,
        room: int,
        headers: Mapping[str, str],
        on_lost: OnLost,
        metrics: Metrics,
    ) -> None:
        self.statistics = Statistics()
        self._backends, self._asked, self._room, self._headers = backends, asked, room, headers
        self._on_lost, self._metrics = on_lost, metrics
        self._gate = RangeGate(asked.gate)
        self._written: list[int] = []
        self._last: Speaker | None = None  # who wrote the last token
        self._lost_at: int | None = None

    async def write(self, prompt: Sequence[int]) -> AsyncGenerator[Written]:
        """The tokens of the answer. Closing the iterator stops the server that is writing.

        Args:
            prompt: ids.

        Raises:
            BackendLostError: a server is lost, and `on_lost` gives its turn to nobody.
            BackendRefusedError: a server does not take the request.
        """
        while True:
            speaker = self._speaker()
            try:
                async with aclosing(self._turn(speaker, prompt)) as turn:
                    async for written in turn:
                        yield written
                        if written.finish_reason is not None:
                            return
            except BackendLostError as lost:
                self._lose(speaker, lost)

    async def _turn(self, speaker: Speaker, prompt: Sequence[int]) -> AsyncGenerator[Written]:
        """The tokens of one model, to the end of its turn or of the text."""
        begin, handed = time.perf_counter(), self._last not in (None, speaker)
        options = self._asked.segment(len(self._written), self._room)
        stream = self._backends[speaker].write([*prompt, *self._written], options, self._headers)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                if handed:
                    self._metrics.hand_over_seconds.labels(speaker).observe(time.perf_counter() - begin)
                    handed = False
                for place, token in enumerate(piece.tokens):
                    self._take(token, speaker)
                    yield self._out(piece, place)
                    # an answer under way is let be when another request has lost the server that writes it
                    if self._wanted != speaker and self._speaker() != speaker:
                        # what came with it, or is still under way, was written out of turn
                        return
                if not piece.tokens and piece.finish_reason is not None:
                    yield Written(None, piece.finish_reason, piece.stop_reason)

    def _take(self, token: Token, speaker: Speaker) -> None:
        statistics, wanted = self.statistics, self._wanted
        if self._last not in (None, speaker):
            statistics.switches += 1
            self._metrics.switches.inc()
        self._last = speaker
        self._written.append(token.id)
        statistics.tokens[speaker] += 1
        self._metrics.tokens.labels(speaker).inc()
        if wanted != speaker:
            statistics.instead += 1
            if wanted not in statistics.lost:  # another request lost it
                statistics.lost.append(wanted)
            self._metrics.instead.labels(wanted).inc()
        if not self._gate.update(token.bits):
            statistics.uncertain += 1
            self._metrics.uncertain.inc()

    @property
    def _wanted(self) -> Speaker:
        return "large" if self._gate.large else "small"

    def _speaker(self) -> Speaker:
        """Whose turn it is, or who stands in."""
        wanted = self._wanted
        if not self._backends[wanted].away:
            return wanted
        other = _other(wanted)
        return other if self._replaceable(wanted) and not self._backends[other].away else wanted

    def _replaceable(self, speaker: Speaker) -> bool:
        return self._on_lost == "other" or (self._on_lost == "large" and speaker == "small")

    def _lose(self, speaker: Speaker, lost: BackendLostError) -> None:
        """Note a lost server; raise if nobody may stand in."""
        self._metrics.errors.labels(speaker, lost.reason).inc()
        self._backends[speaker].lose()
        self.statistics.lost.append(speaker)
        both = self._lost_at == len(self._written)  # nobody wrote anything since the last loss
        if both or not self._replaceable(speaker) or self._backends[_other(speaker)].away:
            raise lost
        self._lost_at = len(self._written)

    def _out(self, piece: Piece, place: int) -> Written:
        """The token at a place of a piece; the piece's end belongs to its last one."""
        token = piece.tokens[place].id
        if place < len(piece.tokens) - 1:
            return Written(token)
        if piece.finish_reason is None and len(self._written) == self._room:
            return Written(token, "length")
        return Written(token, piece.finish_reason, piece.stop_reason)


def _other(speaker: Speaker) -> Speaker:
    return "small" if speaker == "large" else "large"
