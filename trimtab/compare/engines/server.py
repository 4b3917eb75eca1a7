"""Sides that run in an OpenAI-compatible server, asked over HTTP and timed as its tokens stream in."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx

from ...errors import InputError
from ...keep_alive import IDLE_SECONDS
from ..prompts import Prompt
from ..setups import SAMPLING, Setup
from . import Generated

TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Seconds; a token may be long in coming, a connection not."""

_STRENGTHS = {"ead": "threshold", "fusion": "alpha", "steer": "gamma"}
"""The option that a request can name, by method; `trimtab_` before it in `vllm_xargs`."""
_ALL_FREE = 2.0
"""Temperature that leaves trimtab's choice in the server free: the request's is its upper bound."""


class ServerDecoder:
    """One side over one server.

    A vLLM server is sent a `cache_salt` with every request: without it the side that asks second would find the
    prompt's keys and values in the prefix cache, where the first one's request left them. Other servers are asked as
    they are.

    Args:
        setup: whose engine is a URL.
        chat: False sends the bare text to `/completions`; otherwise chats go to `/chat/completions`.

    Raises:
        InputError: the server cannot be reached, is no such server, or has not the model.
    """

    def __init__(self, setup: Setup, chat: bool | None) -> None:
        self._setup, self._chat = setup, chat is not False
        limits = httpx.Limits(keepalive_expiry=IDLE_SECONDS)
        self._client = httpx.Client(base_url=f"{setup.engine}/", timeout=TIMEOUT, limits=limits)
        try:
            self._model = self._choose(self._models())
            self._is_vllm = self._asked_vllm()
        except BaseException:
            self._client.close()
            raise

    def _models(self) -> list[str]:
        shown = f"engine {self._setup.engine!r}"
        try:
            answer = self._client.get("models")
            answer.raise_for_status()
            found = [str(model["id"]) for model in answer.json()["data"]]
        except httpx.HTTPStatusError as error:
            raise InputError(
                f"{shown} answers /models with HTTP {error.response.status_code}: give the address up to its /v1"
            ) from error
        except httpx.HTTPError as error:
            raise InputError(f"{shown} cannot be reached ({error}): start the server, or mend the URL") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{shown} does not answer /models as an OpenAI-compatible server: mend the URL") from error
        if not found:
            raise InputError(f"{shown} serves no model: start it with one")
        return found

    def _choose(self, served: list[str]) -> str:
        wanted, shown = self._setup.model, f"engine {self._setup.engine!r}"
        if wanted in served:
            return wanted
        if wanted:
            raise InputError(f"{shown} has no model {wanted!r}: give model= of {', '.join(served[:5])}")
        if len(served) > 1:
            raise InputError(f"{shown} serves several models: give model= of {', '.join(served[:5])}")
        return served[0]

    def _asked_vllm(self) -> bool:
        root = self._setup.engine.removesuffix("/v1")
        try:
            return "version" in self._client.get(f"{root}/version").json()
        except (httpx.HTTPError, ValueError, TypeError):
            return False

    def decode(self, prompt: Prompt, seed: int, max_new_tokens: int) -> Generated:
        """As `Decoder.decode`; the clock runs from the request to the last token, the network included."""
        path, body = self._request(prompt, seed, max_new_tokens)
        parts: list[str] = []
        usage: dict[str, Any] | None = None
        first = last = None
        start = time.perf_counter()
        with self._client.stream("POST", path, json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise RuntimeError(f"HTTP {answer.status_code}: {answer.text[:300]}")
            for event in _events(answer.iter_lines()):
                usage = event.get("usage") or usage
                if "error" in event:
                    raise RuntimeError(str(event["error"])[:300])
                if (text := _text(event)) is not None:
                    last = time.perf_counter()
                    first = first or last
                    parts.append(text)
        if usage is None or not isinstance(usage.get("completion_tokens"), int):
            raise RuntimeError("the server sends no usage at the end of a stream, so its tokens cannot be counted")
        return Generated(
            text="".join(parts),
            tokens=usage["completion_tokens"],
            prompt_tokens=usage.get("prompt_tokens"),
            seconds=(last or time.perf_counter()) - start,
            first_token_seconds=None if first is None else first - start,
        )

    def _request(self, prompt: Prompt, seed: int, max_new_tokens: int) -> tuple[str, dict[str, Any]]:
        setup = self._setup
        sampling = {name: setup.sampling[name] for name in SAMPLING if name in setup.sampling and name != "seed"}
        body: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            **sampling,
            "seed": seed,
        }
        xargs: dict[str, Any] = {}
        if setup.method == "temperature":
            body["temperature"] = setup.sampling.get("temperature", _ALL_FREE)
            xargs["trimtab_temperature"] = "auto"
        elif (option := _STRENGTHS.get(setup.method)) and option in setup.options:
            xargs[f"trimtab_{option}"] = setup.options[option]
        if xargs:
            body["vllm_xargs"] = xargs
        if self._is_vllm:
            body["cache_salt"] = uuid.uuid4().hex
        if prompt.messages is not None or self._chat:
            body["messages"] = list(prompt.messages or ({"role": "user", "content": prompt.text},))
            return "chat/completions", body
        return "completions", {**body, "prompt": prompt.text}

    def close(self) -> None:
        """End the connection."""
        self._client.close()


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


def _text(event: dict[str, Any]) -> str | None:
    """What an event adds to the text; None where it adds nothing, as the role that opens a chat does."""
    choices = event.get("choices") or []
    if not choices:
        return None
    choice = choices[0]
    text = choice.get("text")
    if text is None:
        delta = choice.get("delta") or {}
        text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    return text or None
