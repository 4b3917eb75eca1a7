"""A side of `trimtab ab` over vLLM's real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.vllm.conftest import Server, Start

pytest.importorskip("vllm")
pytest.importorskip("httpx")

from trimtab.compare.engines.server import ServerDecoder
from trimtab.compare.prompts import Prompt
from trimtab.compare.setups import parse_setup
from trimtab.errors import InputError

pytestmark = pytest.mark.slow

PROMPT = Prompt("1", "all", "Name the three largest moons of Jupiter.")


@pytest.fixture(scope="module")
def running(server: Start, smollm2_directory: Path) -> Server:
    return server(smollm2_directory)


@pytest.fixture
def side(running: Server) -> Iterator[ServerDecoder]:
    found = ServerDecoder(parse_setup("none", model=None, engine=f"{running.url}/v1", sampling={}), None)
    yield found
    found.close()


def test_what_is_streamed_is_what_the_server_answers_at_once(running: Server, side: ServerDecoder) -> None:
    answer = running.client().chat.completions.create(
        model="model", messages=[{"role": "user", "content": PROMPT.text}], max_tokens=12, temperature=0.0
    )
    found = side.decode(PROMPT, 0, 12)
    assert found.text == answer.choices[0].message.content
    assert (found.tokens, found.prompt_tokens) == (answer.usage.completion_tokens, answer.usage.prompt_tokens)
    assert found.first_token_seconds is not None
    assert 0 < found.first_token_seconds < found.seconds


def test_seeds_repeat_and_errors_are_told(running: Server, side: ServerDecoder) -> None:
    url = f"{running.url}/v1"
    sampled = ServerDecoder(parse_setup("none:temperature=1", model=None, engine=url, sampling={}), None)
    assert sampled.decode(PROMPT, 5, 12).text == sampled.decode(PROMPT, 5, 12).text
    with pytest.raises(RuntimeError, match="HTTP 400"):
        side.decode(Prompt("2", "all", "word " * 3000), 0, 12)
    assert side.decode(PROMPT, 0, 4).tokens == 4
    with pytest.raises(InputError, match="has no model 'absent'"):
        ServerDecoder(parse_setup("none", model="absent", engine=url, sampling={}), None)
