"""One request, from what was asked to the parts of its answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from .backend import Backend, Speaker
from .errors import BackendLostError, BadRequestError
from .metrics import Metrics
from .requests import Asked
from .text import Text
from .turns import OnLost, Turns


@dataclass(frozen=True, slots=True)
class Part:
    """Some of an answer.

    Attributes:
        text: what is new.
        tokens: what is new, ids.
        finish: `finish_reason` and `stop_reason` of the last part, else None.
    """

    text: str
    tokens: list[int]
    finish: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two servers and what they have in common.

    Attributes:
        backends: by model.
        tokenizer: of both models.
        context: tokens of prompt and answer that both take, or None.
        on_lost: what a request does when one is lost.
    """

    backends: Mapping[Speaker, Backend]
    tokenizer: Any
    context: int | None
    on_lost: OnLost


class Answer:
    """The answer to one request.

    Args:
        pair: to ask.
        asked: the request.
        prompt: its ids.
        headers: of the client's request that go along.
        metrics: of the proxy.

    Raises:
        BadRequestError: prompt and answer do not fit into the models.
    """

    def __init__(
        self, pair: Pair, asked: Asked, prompt: list[int], headers: Mapping[str, str], metrics: Metrics
    ) -> None:
        if prompt and max(prompt) >= pair.tokenizer.get_vocab_size():
            raise BadRequestError(f"prompt has token id {max(prompt)}, which the models do not have", "prompt")
        self.prompt, self.tokens = prompt, 0
        self._text = Text(
            pair.tokenizer,
            prompt,
            skip_special_tokens=asked.skip_special_tokens,
            stop=asked.stop,
            include_stop=asked.include_stop,
            min_tokens=asked.min_tokens,
        )
        self._turns = Turns(
            pair.backends,
            asked,
            room=_room(asked, len(prompt), pair.context),
            headers=headers,
            on_lost=pair.on_lost,
            metrics=metrics,
        )

    def statistics(self) -> dict[str, Any]:
        """Who wrote what, plain data."""
        return self._turns.statistics.as_dict()

    async def parts(self) -> AsyncGenerator[Part]:
        """The answer as it is written, its last part with a finish. Closing the iterator stops the servers.

        Raises:
            BackendLostError: a server is lost, and nobody may stand in.
            BackendRefusedError: a server does not take the request.
        """
        tokens: list[int] = []
        async with aclosing(self._turns.write(self.prompt)) as written:
            async for one in written:
                reason, why = one.finish_reason, one.stop_reason
                if one.token is not None:
                    self.tokens += 1
                    tokens.append(one.token)
                    self._text.add(one.token, ends=reason == "stop")
                if self._text.stopped is not None:
                    reason, why = "stop", self._text.stopped
                text = self._text.take(finished=reason is not None)
                if reason is not None:
                    yield Part(text, tokens, {"finish_reason": reason, "stop_reason": why})
                    return
                if text or tokens:
                    yield Part(text, tokens)
                    tokens = []


async def prompt_ids(pair: Pair, asked: Asked, headers: Mapping[str, str], metrics: Metrics) -> list[int]:
    """The request's prompt as token ids, from the large model's server, or the small one's where that does as well.

    Raises:
        BackendLostError: it does not answer, and nor does the small one's where that would do.
        BackendRefusedError: the template or the text is refused.
    """
    if isinstance(asked.prompt, list):
        return asked.prompt
    large, small = pair.backends["large"], pair.backends["small"]
    # texts are tokenized alike by both (`connect`), but of two chat templates the large model's is the one meant
    either = not asked.chat or pair.on_lost == "other"
    if not (either and large.away):
        try:
            return await large.tokenize(asked.prompt, headers)
        except BackendLostError as lost:
            metrics.errors.labels("large", lost.reason).inc()
            large.lose()
            if not either:
                raise
    return await small.tokenize(asked.prompt, headers)


def _room(asked: Asked, prompt: int, context: int | None) -> int:
    """Tokens that the answer may have."""
    if not prompt:
        raise BadRequestError("prompt is empty: give a text of at least one token", "prompt")
    left = None if context is None else context - prompt
    if left is not None and left < (asked.max_tokens or 1):
        wanted = f" and max_tokens {asked.max_tokens}" if asked.max_tokens else ""
        raise BadRequestError(
            f"the prompt has {prompt} tokens{wanted}, and the models take {context} together: ask for less",
            "max_tokens" if left > 0 else "prompt",
        )
    if asked.max_tokens is not None:
        return asked.max_tokens
    if left is None:
        raise BadRequestError("max_tokens is not given, and the servers tell no context: give it", "max_tokens")
    return left
