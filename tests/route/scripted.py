"""A server that does what a test says, for what a real one cannot be made to show: torn answers, slow tokens, errors.

What the proxy writes over real servers is in `test_servers.py`.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

SURE, UNSURE = 0.0, 1.0


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI application on a port of this machine; gives its URL."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def two_choices(bits: float) -> list[float]:
    """Log-probabilities of two tokens whose entropy is this, 0 to 1."""
    low, high = 0.0, 0.5
    for _ in range(60):
        p = (low + high) / 2
        entropy = 0.0 if p == 0 else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
        low, high = (p, high) if entropy < bits else (low, p)
    return [math.log1p(-p), math.log(max(p, 1e-30))]


@dataclass
class Scripted:
    """One server's behaviour, which a test may change while it runs.

    Attributes:
        token: id at a position of the text, prompt included.
        bits: entropy there, 0 to 1.
        chunk: tokens that come at once.
        tokens_to_tear: break off after so many tokens of an answer.
        seconds: to wait before a token, by its number in the answer.
        status: of all answers to completions; 200 writes.
        mass: of the two tokens that are told.
        error: sent as an event after `tokens_to_tear` tokens, instead of breaking off.
        eos: number of tokens of an answer after which the model ends the text.
        encode: for `/tokenize`.
        tokenizes: whether `/tokenize` works.
        asked: bodies of the completions, headers in `headers`.
        ports: the client's ends of the connections over which `/tokenize` was asked.
        running: completions that are being written now.
    """

    token: Callable[[int], int]
    bits: Callable[[int], float]
    encode: Callable[[str], list[int]]
    chunk: int = 1
    tokens_to_tear: int | None = None
    seconds: Callable[[int], float] = lambda number: 0.0
    status: int = 200
    error: dict[str, Any] | None = None
    eos: int | None = None
    context: int | None = 1000
    root: str = "nowhere"
    tokenizes: bool = True
    processed: bool = False
    mass: float = 1.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    running: int = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "scripted", "root": self.root, "max_model_len": self.context}]})

    async def _tokenize(self, request: Request) -> Response:
        if not self.tokenizes:
            return JSONResponse({"error": {"message": "as scripted", "code": 503}}, 503)
        assert request.client is not None
        self.ports.append(request.client.port)
        body = await request.json()
        text = body["prompt"] if "prompt" in body else "".join(one["content"] for one in body["messages"])
        return JSONResponse({"tokens": self.encode(text)})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        if self.status != 200:
            error = {"message": "as scripted", "param": "temperature", "code": self.status}
            return JSONResponse({"error": error}, self.status)
        return StreamingResponse(self._written(body), media_type="text/event-stream")

    async def _written(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.running += 1
        try:
            number, total = 0, min(body["max_tokens"], self.eos or 10**6)
            while number < total:
                if self.tokens_to_tear is not None and number >= self.tokens_to_tear:
                    if self.error is None:
                        return
                    yield f"data: {json.dumps({'error': self.error})}\n\n"
                    break
                await asyncio.sleep(self.seconds(number))
                here = range(number, min(number + self.chunk, total))
                number = here.stop
                yield f"data: {json.dumps(self._chunk(body, here, ends=number == total))}\n\n"
            yield ": a comment\n\ndata: [DONE]\n\n"
        finally:
            self.running -= 1

    def _chunk(self, body: dict[str, Any], numbers: range, *, ends: bool) -> dict[str, Any]:
        begin = len(body["prompt"])
        forced = [int(token) for token in body.get("logit_bias") or {}]
        ids = forced or [self.token(begin + number) for number in numbers]
        tops = []
        for number, token in zip(numbers, ids, strict=False):
            # a bias forces a token, and log-probabilities before it do not tell of it
            bits = self.bits(begin + number) if not forced else SURE if self.processed else UNSURE
            first, second = (value + math.log(self.mass) for value in two_choices(bits))
            tops.append({f"token_id:{token}": first, f"token_id:{token + 1}": second})
        reason = None if not ends else "length" if numbers.stop == body["max_tokens"] else "stop"
        choice = {"text": "", "token_ids": ids, "logprobs": {"top_logprobs": tops}, "finish_reason": reason}
        return {"choices": [choice | {"stop_reason": None}]}
