"""The proxy over two scripted servers, each on a port of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.route.scripted import SURE, Scripted, serving
from trimtab.decoding.entropy_gate import GateSettings
from trimtab.integrations.transformers.embedded import embedded_directory
from trimtab.route.app import make_app
from trimtab.route.backend import Patience
from trimtab.route.connect import Servers
from trimtab.route.text import read_tokenizer

SMALL, LARGE = 300, 600
"""A server's tokens are this and the position in the text, which tells who wrote what, and where."""

CLIENT = httpx.Client(timeout=30)  # making one takes longer than most requests
GATE = GateSettings(0.5, window=1, min_stay=1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return read_tokenizer(str(embedded_directory("smollm2-135m")))


@dataclass
class Pair:
    """A proxy, and the servers behind it."""

    url: str
    small: Scripted
    large: Scripted

    def post(self, path: str = "/v1/completions", **body: Any) -> Any:
        return CLIENT.post(self.url + path, json=body)

    def write(self, prompt: Any = (5, 6, 7), max_tokens: int = 12, **body: Any) -> Any:
        asked = {"prompt": list(prompt) if not isinstance(prompt, str) else prompt, "max_tokens": max_tokens}
        return self.post(**asked, return_token_ids=True, **body)

    def metric(self, name: str) -> float:
        lines = CLIENT.get(self.url + "/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def scripted(tokenizer: Any) -> tuple[Scripted, Scripted]:
    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    small = Scripted(lambda place: SMALL + place, lambda place: SURE, encode)
    large = Scripted(lambda place: LARGE + place, lambda place: SURE, encode)
    return small, large


@pytest.fixture
def make_pair(scripted: tuple[Scripted, Scripted]) -> Iterator[Callable[..., Pair]]:
    """`make_pair(gate=..., on_lost=..., patience=..., keys=...) -> Pair`."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(one.app())) for one in scripted]

        def make(gate: GateSettings = GATE, patience: Patience | None = None, **options: Any) -> Pair:
            servers = Servers(
                urls={"small": urls[0], "large": urls[1]},
                tokenizer=str(embedded_directory("smollm2-135m")),
                top_logprobs=2,
                patience=patience or Patience(retry=0.3),
                **options,
            )
            url = stack.enter_context(serving(make_app(servers, gate, name="pair")))
            for one in scripted:  # what was asked at the start
                one.asked.clear()
                one.headers.clear()
                one.ports.clear()
            return Pair(url, *scripted)

        yield make


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


def ids_of(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["choices"][0]["token_ids"]
    return found
