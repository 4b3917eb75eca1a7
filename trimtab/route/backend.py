"""One of the two servers: what is asked of it, and what of its answers is used.

Texts go to `/v1/completions` as token ids and come back as token ids with log-probabilities, so that what one model
wrote is, token for token, what the other one reads. Tested with the server of vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from ..decoding.top_entropy import EntropyRange, entropy_range
from .errors import BackendLostError, BackendRefusedError

Speaker = Literal["small", "large"]
SPEAKERS: tuple[Speaker, Speaker] = ("small", "large")

_TOKEN = "token_id:"  # what vLLM writes before an id in the place of a token's text


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds after which a server counts as lost.

    Attributes:
        connect: until a connection stands.
        first_token: from a request to its first token; the server may have others to serve and a prompt to read.
        between_tokens: from a token to the next.
        retry: how long a lost server is left alone where the other one can go on.
    """

    connect: float = 5.0
    first_token: float = 120.0
    between_tokens: float = 30.0
    retry: float = 10.0


@dataclass(frozen=True, slots=True)
class Token:
    """One that a server wrote.

    Attributes:
        id: of the common vocabulary.
        bits: entropy of the distribution it comes from, before temperature.
    """

    id: int
    bits: EntropyRange


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes at once: one token, several from a busy server, or none but the end.

    Attributes:
        tokens: in order.
        finish_reason: of the last one, `"stop"`, `"length"` or None.
        stop_reason: the id that ended the text, or None for the model's own end.
    """

    tokens: list[Token]
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """What a server says of its model.

    Attributes:
        model: its name in requests.
        root: where the server has it from: a directory of that machine, or a hub id.
        context: tokens of prompt and answer, or None.
    """

    model: str
    root: str
    context: int | None


class Backend:
    """A server, over an HTTP client of the running event loop.

    Args:
        name: of its model here.
        url: without `/v1`.
        client: to ask with; its own time limits are not used.
        patience: before it counts as lost.
        top_logprobs: K, log-probabilities to ask for with each token; -1 is all.
        vocab_size: tokens that its distributions are over.
        key: sent as a bearer token instead of the client's.
    """

    def __init__(
        self,
        name: Speaker,
        url: str,
        client: httpx.AsyncClient,
        *,
        patience: Patience,
        top_logprobs: int,
        vocab_size: int = 0,
        key: str | None = None,
    ) -> None:
        self.name, self.url, self.vocab_size = name, url.rstrip("/"), vocab_size
        self._client, self._patience, self._top, self._key = client, patience, top_logprobs, key
        self._model: str | None = None
        self._lost_until = 0.0

    @property
    def away(self) -> bool:
        """Whether it was lost a short time ago."""
        return time.monotonic() < self._lost_until

    def lose(self) -> None:
        """Leave it alone for a while."""
        self._lost_until = time.monotonic() + self._patience.retry

    async def card(self) -> Card:
        """What it serves.

        Raises:
            BackendLostError: it does not answer.
            BackendRefusedError: it answers with an error, or not as such a server does.
        """
        answer = await self._ask("GET", "/v1/models", None)
        try:
            first = answer["data"][0]
            card = Card(first["id"], first.get("root") or first["id"], first.get("max_model_len"))
        except (LookupError, TypeError) as error:
            raise BackendRefusedError(f"{self.url}/v1/models has no model", 502) from error
        self._model = card.model
        return card

    async def tokenize(self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> list[int]:
        """Ids of a text (`prompt`) or of a chat in the model's template (`messages` and what belongs to them).

        Raises:
            BackendLostError: it does not answer.
            BackendRefusedError: it answers with an error.
        """
        answer = await self._ask("POST", "/tokenize", {"model": self._model, **body}, headers)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(tokens, list):
            raise BackendRefusedError(f"{self.url}/tokenize gives no tokens", 502)
        return tokens

    async def _ask(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        try:
            async with asyncio.timeout(self._patience.first_token):
                answer = await self._client.request(
                    method, self.url + path, json=body, headers=self._headers(headers), timeout=self._limits()
                )
        except (httpx.TransportError, TimeoutError) as error:
            raise self._lost(error) from error
        self._check(answer.status_code, answer.content)
        try:
            return answer.json()
        except ValueError as error:
            raise BackendRefusedError(f"{self.url}{path} answers without JSON", 502) from error

    async def write(
        self, prompt: Sequence[int], options: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Piece]:
        """Go on with a text. Closing the iterator closes the connection, upon which the server stops writing.

        Args:
            prompt: ids.
            options: of the request, as `/v1/completions` takes them.
            headers: of the client's request that go along.

        Raises:
            BackendLostError: it does not answer, breaks off or is silent for too long.
            BackendRefusedError: it answers with an error.
        """
        body = {
            **options,
            "model": self._model,
            "prompt": list(prompt),
            "stream": True,
            "logprobs": self._top,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
        }
        async with aclosing(self._events(body, headers)) as events:
            seconds = self._patience.first_token
            finished = False
            while True:
                try:
                    async with asyncio.timeout(seconds):
                        event = await anext(events, None)
                except (httpx.TransportError, TimeoutError) as error:
                    raise self._lost(error) from error
                if event is None:
                    break
                if piece := self._piece(event):
                    seconds = self._patience.between_tokens
                    finished = finished or piece.finish_reason is not None
                    yield piece
            if not finished:
                raise BackendLostError(self.name, "torn", "broke off within an answer")

    async def _events(self, body: Any, headers: Mapping[str, str] | None) -> AsyncGenerator[Any]:
        """The objects of a stream of server-sent events, to `[DONE]`."""
        request = self._client.stream(
            "POST", f"{self.url}/v1/completions", json=body, headers=self._headers(headers), timeout=self._limits()
        )
        async with request as answer:
            if answer.status_code != httpx.codes.OK:
                self._check(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue  # comments keep a connection alive, and an empty line ends an event
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                try:
                    yield json.loads(data)
                except ValueError as error:
                    raise BackendLostError(self.name, "torn", "broke off within an answer") from error

    def _piece(self, event: Any) -> Piece | None:
        if "error" in event:
            self._check(event["error"].get("code", 500), json.dumps(event).encode())
        if not event.get("choices"):
            return None
        choice = event["choices"][0]
        ids = choice.get("token_ids") or []
        scores = choice.get("logprobs") or {}
        tops = scores.get("top_logprobs") or []
        if len(tops) != len(ids):
            raise BackendRefusedError(f"{self.url} gives {len(ids)} token ids and {len(tops)} lists of logprobs", 502)
        tokens = [Token(token, self._range(token, top)) for token, top in zip(ids, tops, strict=True)]
        return Piece(tokens, choice.get("finish_reason"), choice.get("stop_reason"))

    def _range(self, token: int, top: Mapping[str, float]) -> EntropyRange:
        """Of a token's list: the K likeliest, and the token itself where it is not among them."""
        if self._top < 0 or len(top) <= self._top:
            return entropy_range(top.values(), self.vocab_size)
        own = top[f"{_TOKEN}{token}"]
        others = [value for name, value in top.items() if name != f"{_TOKEN}{token}"]
        return entropy_range(others, self.vocab_size, beyond=(own,))

    def _check(self, status: int, content: bytes) -> None:
        """Raise for an answer that is an error."""
        if status < 400:
            return
        try:
            error = json.loads(content)["error"]
            message, param = str(error["message"]), error.get("param")
        except (ValueError, LookupError, TypeError, AttributeError):
            message, param = content.decode(errors="replace")[:200] or "no reason given", None
        if status >= 500:
            raise BackendLostError(self.name, "status", f"answers with status {status}: {message}")
        raise BackendRefusedError(f"the {self.name} model's server: {message}", status, param)

    def _lost(self, error: Exception) -> BackendLostError:
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return BackendLostError(self.name, "timeout", "was silent for too long")
        if isinstance(error, httpx.ConnectError):
            return BackendLostError(self.name, "connect", "cannot be reached")
        return BackendLostError(self.name, "torn", "broke off within an answer")

    def _limits(self) -> httpx.Timeout:
        return httpx.Timeout(None, connect=self._patience.connect)

    def _headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        own = {} if self._key is None else {"authorization": f"Bearer {self._key}"}
        return {**(headers or {}), **own}
