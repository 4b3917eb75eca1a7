"""What the proxy asks before it opens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.route.scripted import Scripted, serving
from trimtab.errors import InputError
from trimtab.integrations.transformers.embedded import embedded_directory
from trimtab.route.backend import Patience
from trimtab.route.connect import Servers, connect

URLS = {"small": "http://localhost:1", "large": "http://localhost:2"}


def connected(small: Scripted, large: Scripted, **options: Any) -> Any:
    async def both(urls: dict[str, str]) -> Any:
        async with AsyncExitStack() as stack:
            servers = Servers(urls=urls, tokenizer=str(embedded_directory("smollm2-135m")), **options)  # type: ignore[arg-type]
            return await connect(servers, stack)

    with serving(small.app()) as one, serving(large.app()) as other:
        return asyncio.run(both({"small": one, "large": other}))


def test_what_both_have_in_common(scripted: tuple[Scripted, Scripted]) -> None:
    small, large = scripted
    large.context = 500
    found = connected(small, large)
    assert found.context == 500
    assert found.backends["small"].vocab_size == 49152


def test_no_server_is_one_line(scripted: tuple[Scripted, Scripted]) -> None:
    async def both() -> None:
        async with AsyncExitStack() as stack:
            await connect(Servers(urls=URLS, patience=Patience(connect=1)), stack)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=r"--small is 'http://localhost:1': the small model's server cannot be"):
        asyncio.run(both())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda small, large: setattr(small, "encode", lambda text: [1, 2]), "give a text different token ids"),
        (
            lambda small, large: [setattr(one, "encode", lambda text: [1, 2]) for one in (small, large)],
            "other token ids than the servers",
        ),
        (lambda small, large: setattr(large, "processed", True), "--large gives log-probabilities after penalties"),
        (lambda small, large: setattr(small, "status", 400), "--small is .*as scripted"),
    ],
)
def test_a_pair_that_cannot_work_is_refused(
    scripted: tuple[Scripted, Scripted], change: Callable[[Scripted, Scripted], None], message: str
) -> None:
    change(*scripted)
    with pytest.raises(InputError, match=message):
        connected(*scripted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": {"small": "localhost:1", "large": URLS["large"]}}, "--small is 'localhost:1': give a URL"),
        ({"urls": URLS, "top_logprobs": 0}, "--top-logprobs is 0"),
        ({"urls": URLS, "on_lost": "panic"}, "--on-lost is 'panic'"),
        ({"urls": URLS, "patience": Patience(first_token=0)}, "--first-token-seconds is 0"),
    ],
)
def test_settings_are_checked(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Servers(**options)


def test_a_tokenizer_that_is_not_there(scripted: tuple[Scripted, Scripted], tmp_path: Any) -> None:
    from trimtab.route.text import read_tokenizer

    with pytest.raises(InputError, match=r"there is no tokenizer\.json"):
        read_tokenizer(str(tmp_path))
