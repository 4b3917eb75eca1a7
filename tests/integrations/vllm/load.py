"""Many requests at a real server at once: some to be finished, some dropped half-way, some malformed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
import openai
import psutil

from tests.integrations.vllm.conftest import Server
from trimtab.keep_alive import IDLE_SECONDS

AT_ONCE = 32
DROPPED_AFTER = 3
"""Pieces of a stream that are read before the client goes away."""
LONG = 96
"""Tokens that a request asks for which is not waited for."""


@dataclass(frozen=True)
class Ask:
    """A well-formed request.

    Attributes:
        body: of `/v1/completions` if it has a prompt, else of `/v1/chat/completions`; without model and stream.
        text: what it has to answer; None where it is sampled.
    """

    body: dict[str, Any]
    text: str | None = None


@dataclass(frozen=True)
class Bad:
    """A malformed request.

    Attributes:
        body: to be sent as JSON; a text goes as it is.
        says: part of the answer, with the field's name.
        path: where it is sent.
    """

    body: dict[str, Any] | str
    says: str
    path: str = "/v1/completions"


@dataclass
class Outcome:
    """What came of the requests.

    Attributes:
        finished: requests that were waited for.
        streamed: of those, how many were streams.
        dropped: requests whose client went away.
        midway: of those, how many had written something by then.
        refused: malformed requests with HTTP 400 and the field's name, by what was to be said.
        wrong: everything that should not have been.
    """

    finished: int = 0
    streamed: int = 0
    dropped: int = 0
    midway: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def send_all(server: Server, asks: Sequence[Ask | Bad], outcome: Outcome) -> None:
    """`AT_ONCE` requests at a time; of the well-formed ones every third is dropped, every other one is streamed."""
    gate = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)
    patient = openai.DefaultAsyncHttpxClient(timeout=300, limits=limits)
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=patient)
    raw = httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits)

    async def one(index: int, ask: Ask | Bad) -> None:
        async with gate:
            try:
                if isinstance(ask, Bad):
                    await _refused(raw, ask, outcome)
                elif index % 3 == 1:
                    await _drop(client, ask, index, outcome)
                else:
                    await _finish(client, ask, index % 2 == 0, outcome)
            except openai.APIError as error:
                outcome.wrong.append(f"{ask}: {error!r}")

    async with client, raw:
        await asyncio.gather(*(one(index, ask) for index, ask in enumerate(asks)))


async def _finish(client: Any, ask: Ask, stream: bool, outcome: Outcome) -> None:
    text = await text_of(client, ask.body, stream=stream)
    outcome.finished += 1
    outcome.streamed += stream
    if ask.text is not None and text != ask.text:
        outcome.wrong.append(f"{ask.body}: {text!r}, alone it is {ask.text!r}")


async def text_of(client: Any, body: dict[str, Any], *, stream: bool = False) -> str:
    """What one request answers."""
    chat, endpoint = _endpoint(client, body)
    answer = await endpoint.create(model="model", stream=stream, **body)
    if not stream:
        return str(answer.choices[0].message.content if chat else answer.choices[0].text)
    return "".join([_piece(chat, part) async for part in answer])


async def _drop(client: Any, ask: Ask, index: int, outcome: Outcome) -> None:
    """Go away: of three clients two after some pieces of a stream, one while it waits for the whole answer."""
    chat, endpoint = _endpoint(client, ask.body)
    body = ask.body | {"max_tokens": LONG, "extra_body": {**ask.body["extra_body"], "ignore_eos": True}}
    outcome.dropped += 1
    if index % 9 == 1:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(endpoint.create(model="model", **body), 0.5)
        return
    pieces = 0
    async with await endpoint.create(model="model", stream=True, **body) as stream:
        async for part in stream:
            pieces += bool(_piece(chat, part))
            if pieces == DROPPED_AFTER:
                break
    outcome.midway += pieces == DROPPED_AFTER


async def _refused(client: httpx.AsyncClient, bad: Bad, outcome: Outcome) -> None:
    if isinstance(bad.body, str):
        answer = await client.post(bad.path, content=bad.body, headers={"Content-Type": "application/json"})
    else:
        answer = await client.post(bad.path, json={"model": "model", **bad.body})
    if answer.status_code == 400 and bad.says in answer.text:
        outcome.refused[bad.says] += 1
    else:
        outcome.wrong.append(f"{bad.body}: HTTP {answer.status_code}, {answer.text}")


def _endpoint(client: Any, body: dict[str, Any]) -> tuple[bool, Any]:
    chat = "messages" in body
    return chat, client.chat.completions if chat else client.completions


def _piece(chat: bool, part: Any) -> str:
    if not part.choices:
        return ""
    return (part.choices[0].delta.content if chat else part.choices[0].text) or ""


class Memory(NamedTuple):
    """MiB that processes of a server hold for themselves: pages of files and shared ones come and go.

    Attributes:
        worker: the process with the models.
        rest: all others.
    """

    worker: float
    rest: float


def memory(server: Server) -> Memory:
    """What is held between two requests, nearly nothing of it for the last step: that is one of a single request."""
    server.client().completions.create(model="model", prompt="Hello", max_tokens=2, temperature=0)
    process = psutil.Process(server.process.pid)
    held = Counter[bool]()
    for part in (process, *process.children(recursive=True)):
        held["VLLM::Worker" in " ".join(part.cmdline())] += part.memory_full_info().uss
    assert held[True]
    return Memory(held[True] / 2**20, held[False] / 2**20)


def written(server: Server) -> float:
    """Tokens that the engine has generated, for whomever."""
    found = re.findall(r"^vllm:generation_tokens_total{.*} (\S+)$", server.get("/metrics"), re.M)
    return sum(map(float, found))
