"""The proxy's HTTP: an OpenAI-compatible server over the pair of servers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..decoding.entropy_gate import GateSettings
from .answer import Answer, Pair, Part, prompt_ids
from .backend import SPEAKERS
from .connect import Servers, connect
from .errors import BadRequestError, RouteError
from .metrics import Metrics
from .requests import Asked, read
from .responses import DONE, Form, failure

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_CLIENT_GONE = 499  # nobody is there to read it

HEADERS = ("authorization", "x-request-id", "traceparent", "tracestate")
"""Of a client's request that go along to the servers."""


def make_app(servers: Servers, gate: GateSettings, *, name: str) -> Starlette:
    """The proxy, for an ASGI server.

    Args:
        servers: to connect to at start.
        gate: settings of requests that say nothing else.
        name: of the pair, as a model's.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.proxy = _Proxy(await connect(servers, stack), gate, name, metrics)
            yield

    def of(handler: Callable[[_Proxy, Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            return await handler(request.app.state.proxy, request)

        return handle

    return Starlette(
        routes=[
            Route("/v1/completions", of(_Proxy.completions), methods=["POST"]),
            Route("/v1/chat/completions", of(_Proxy.chat_completions), methods=["POST"]),
            Route("/v1/models", of(_Proxy.models)),
            Route("/health", of(_Proxy.health)),
            Route("/metrics", of(_Proxy.page)),
        ],
        lifespan=lifespan,
    )


class _Proxy:
    """What the routes share."""

    def __init__(self, pair: Pair, gate: GateSettings, name: str, metrics: Metrics) -> None:
        self._pair, self._gate, self._name, self._metrics = pair, gate, name, metrics

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def chat_completions(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def models(self, request: Request) -> Response:
        card = {"id": self._name, "object": "model", "owned_by": "trimtab", "max_model_len": self._pair.context}
        return JSONResponse({"object": "list", "data": [card]})

    async def health(self, request: Request) -> Response:
        """200 while requests can be answered: both servers were there when they were last asked for."""
        away = [name for name in SPEAKERS if self._pair.backends[name].away]
        return JSONResponse({"away": away}, 503 if away and self._pair.on_lost == "fail" else 200)

    async def page(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4")

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        ended = _Ended(self._metrics)
        try:
            body = await _json(request)
            asked = read(body, chat=chat, gate=self._gate)
            if body.get("model") not in (None, self._name):
                raise BadRequestError(f"model is {body['model']!r:.60}: give {self._name!r}", "model", 404)
            response = await _while_connected(request, self._begin(request, asked, ended))
        except RouteError as error:
            ended(error.kind)
            return JSONResponse(error.body(), error.status)
        except BaseException:
            ended("cancelled")
            raise
        if response is None:
            ended("cancelled")
            return Response(status_code=_CLIENT_GONE)
        return response

    async def _begin(self, request: Request, asked: Asked, ended: _Ended) -> Response:
        """The answer, or its first part, so that what goes wrong before it has an HTTP status."""
        headers = {name: value for name in HEADERS if (value := request.headers.get(name)) is not None}
        prompt = await prompt_ids(self._pair, asked, headers, self._metrics)
        answer = Answer(self._pair, asked, prompt, headers, self._metrics)
        form = Form(chat=asked.chat, model=self._name, prompt_tokens=len(prompt))
        parts = answer.parts()
        if asked.stream:
            try:
                first = await anext(parts)
            except BaseException:
                await parts.aclose()
                raise
            return _Events(_events(form, asked, answer, first, parts, ended), parts, ended)
        text, tokens, finish = "", list[int](), dict[str, Any]()
        async with aclosing(parts):
            async for part in parts:
                text, tokens, finish = text + part.text, tokens + part.tokens, part.finish or finish
        ended("ok")
        ids = tokens if asked.token_ids else None
        return JSONResponse(form.whole(text, ids, finish, form.usage(answer.tokens), trimtab=answer.statistics()))


class _Ended:
    """Counts a request once, by how it ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._open = metrics, True
        metrics.running.inc()

    def __call__(self, outcome: str) -> None:
        if self._open:
            self._open = False
            self._metrics.running.dec()
            self._metrics.requests.labels(outcome).inc()


class _Events(StreamingResponse):
    """Closes what it streams, also when the client has gone, and with it the connection to the server that writes."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[bytes], parts: AsyncGenerator[Part], ended: _Ended) -> None:
        super().__init__(content, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._content, self._parts, self._ended = content, parts, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._content.aclose()
            # a client that goes at once leaves the content unbegun, and closing that closes nothing else
            await self._parts.aclose()
            self._ended("cancelled")


async def _events(
    form: Form, asked: Asked, answer: Answer, first: Part, parts: AsyncGenerator[Part], ended: _Ended
) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(parts):
            if opening := form.opening():
                yield opening
            yield _event(form, asked, answer, first)
            async for part in parts:
                if part.text or part.finish or asked.token_ids:
                    yield _event(form, asked, answer, part)
        if asked.include_usage:
            yield form.closing(form.usage(answer.tokens))
        ended("ok")
    except RouteError as error:
        ended(error.kind)
        yield failure(error)
    except Exception:
        logger.exception("an answer broke off")
        ended("lost")
        yield failure(RouteError("internal error", 500))
    finally:
        ended("cancelled")
    yield DONE


def _event(form: Form, asked: Asked, answer: Answer, part: Part) -> bytes:
    more = {} if part.finish is None else {"trimtab": answer.statistics()}
    return form.part(part.text, part.tokens if asked.token_ids else None, part.finish, **more)


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except ValueError as error:  # of UTF-8 as well
        raise BadRequestError(f"the body is no JSON: {error}") from error


async def _while_connected(request: Request, work: Awaitable[_Result]) -> _Result | None:
    """The result of some work, or None if the client leaves before; the work is then cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
