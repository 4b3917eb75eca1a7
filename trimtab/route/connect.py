"""Two servers, asked before the proxy opens: whether they are there, read the same ids and tell what the gate needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import httpx

from ..errors import InputError
from ..keep_alive import IDLE_SECONDS
from .answer import Pair
from .backend import SPEAKERS, Backend, Card, Patience, Speaker
from .errors import RouteError
from .text import read_tokenizer
from .turns import ON_LOST, OnLost

PROBE = "Grüße, 世界! 👩‍🔬 def f(x):\n    return x**2  # 3.14159\t<|im_start|> naïve — don't\r\n\r\n"
"""Words, digits, spaces, an emoji of several characters and a marker: where tokenizers differ."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are and how they are asked.

    Attributes:
        urls: by model, without `/v1`.
        tokenizer: directory or hub id; None is where the large model's server has its model from.
        top_logprobs: log-probabilities to ask for with each token; -1 is all, which a server has to allow and which
            takes it longer than writing the token.
        patience: before a server counts as lost.
        on_lost: what a request does then.
        keys: sent as bearer tokens, by model.
    """

    urls: Mapping[Speaker, str]
    tokenizer: str | None = None
    top_logprobs: int = 20
    patience: Patience = field(default_factory=Patience)
    on_lost: OnLost = "fail"
    keys: Mapping[Speaker, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in SPEAKERS:
            if not self.urls[name].startswith(("http://", "https://")):
                raise InputError(f"--{name} is {self.urls[name]!r}: give a URL such as http://localhost:8000")
        if self.top_logprobs < 1 and self.top_logprobs != -1:
            raise InputError(f"--top-logprobs is {self.top_logprobs}: give 1 or more, or -1 for the whole vocabulary")
        if self.on_lost not in ON_LOST:
            raise InputError(f"--on-lost is {self.on_lost!r}: give of {', '.join(ON_LOST)}")
        for patience in fields(self.patience):
            if not (seconds := getattr(self.patience, patience.name)) > 0:
                flag = patience.name.replace("_", "-")
                raise InputError(f"--{flag}-seconds is {seconds}: give more than 0")


async def connect(servers: Servers, stack: AsyncExitStack) -> Pair:
    """Both servers, checked, over clients that `stack` closes.

    Raises:
        InputError: a server is not there, they have different tokenizers, or one does not give log-probabilities of
            the model's own distribution.
    """
    limits = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)
    backends = {}
    for name in SPEAKERS:
        client = await stack.enter_async_context(httpx.AsyncClient(limits=limits))
        backends[name] = Backend(
            name,
            servers.urls[name],
            client,
            patience=servers.patience,
            top_logprobs=servers.top_logprobs,
            key=servers.keys.get(name),
        )
    cards: dict[Speaker, Card] = {}
    ids: dict[Speaker, list[int]] = {}
    for name, backend in backends.items():
        try:
            cards[name] = await backend.card()
            ids[name] = await backend.tokenize({"prompt": PROBE, "add_special_tokens": False})
        except RouteError as error:
            raise InputError(f"--{name} is {servers.urls[name]!r}: {error.message}") from error
    tokenizer = read_tokenizer(cards["large"].root if servers.tokenizer is None else servers.tokenizer)
    own = tokenizer.encode(PROBE, add_special_tokens=False).ids
    if ids["small"] != ids["large"]:
        raise InputError(
            f"--small {servers.urls['small']} and --large {servers.urls['large']} give a text different token ids: "
            "serve models of one tokenizer"
        )
    if own != ids["large"]:
        raise InputError(
            f"--tokenizer is {servers.tokenizer or cards['large'].root!r}, which gives a text other token ids than the "
            "servers: give the models' own"
        )
    for name, backend in backends.items():
        backend.vocab_size = tokenizer.get_vocab_size()
        try:
            await _check_logprobs(name, backend, ids[name], servers.top_logprobs)
        except RouteError as error:
            raise InputError(f"--{name} is {servers.urls[name]!r}: {error.message}") from error
    contexts = [card.context for card in cards.values() if card.context is not None]
    return Pair(backends, tokenizer, min(contexts, default=None), servers.on_lost)


async def _check_logprobs(name: Speaker, backend: Backend, prompt: list[int], count: int) -> None:
    """A token that a bias forces is certain after the bias, and is not before: the gate needs what is before."""
    forced = prompt[0]
    options: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logit_bias": {str(forced): 100}, "ignore_eos": True}
    async for piece in backend.write(prompt, options):
        for token in piece.tokens:
            if token.id == forced and token.bits.high < 1e-3:
                raise InputError(
                    f"--{name} gives log-probabilities after penalties and biases: start it with "
                    "--logprobs-mode raw_logprobs, vLLM's default"
                )
            if not -1e-3 <= token.bits.low <= token.bits.high + 1e-3:
                raise InputError(
                    f"--{name} gives no log-probabilities: start it with --logprobs-mode raw_logprobs, vLLM's default"
                )
