"""What a client asks: which of it the proxy sees to, which the servers, and which cannot be had across two models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..decoding.entropy_gate import GateSettings
from ..errors import InputError
from .errors import BadRequestError

LONGEST_WINDOW = 65536
"""Tokens; a window is memory of the proxy."""

GATE = ("threshold", "window", "min_stay", "lower_threshold", "decay")
"""Settings of the gate that a request may choose, as `trimtab_threshold` and so on in `vllm_xargs`."""

PREFIX = "trimtab_"
START = "trimtab_start"

SERVERS_OWN = ("trimtab_temperature", "trimtab_trace_id", "trimtab_alpha", "trimtab_gamma")
"""Options of trimtab's methods inside a server, which go there like those of others."""

HANDED_ON = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "logit_bias",
    "allowed_token_ids", "priority", "cache_salt", "user",
)  # fmt: skip
"""Each model's server sees to them for the tokens that it writes."""

TEMPLATE = (
    "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template", "chat_template_kwargs",
)  # fmt: skip
"""Of a chat, for the template."""

OWN = (
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "seed", "stop", "stream",
    "stream_options", "include_stop_str_in_output", "skip_special_tokens", "return_token_ids", "vllm_xargs",
    "add_special_tokens",
)  # fmt: skip
"""The proxy sees to them."""

WITHOUT_EFFECT = ("metadata", "store", "service_tier", "request_id", "session_id", "parallel_tool_calls")
"""Taken from clients that always send them, as vLLM does."""

NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "best_of": 1,
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "length_penalty": 1.0,
    "spaces_between_special_tokens": True,
    "include_reasoning": True,
}
"""What else may be sent with this value, with null or with nothing in it: it asks for nothing."""

WHY: Mapping[str, str] = {
    "n": "the proxy writes one answer",
    "best_of": "the proxy writes one answer",
    "presence_penalty": "a server counts only the tokens since the hand-over; use repetition_penalty",
    "frequency_penalty": "a server counts only the tokens since the hand-over; use repetition_penalty",
    "response_format": "a grammar would begin anew with each hand-over",
    "structured_outputs": "a grammar would begin anew with each hand-over",
    "tools": "calls are not read out of texts of two models",
    "logprobs": "they go to the gate",
    "bad_words": "a word across a hand-over would not be found",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be answered.

    Attributes:
        chat: whether it came as one.
        prompt: token ids, or what a server's `/tokenize` makes them from.
        gate: this request's own.
        options: for the servers.
        max_tokens: of the answer, or None for as many as there is room for.
        min_tokens: before the model or a stop string may end the text.
        seed: or None.
        stop: strings that end the text.
        include_stop: whether they are part of it.
        skip_special_tokens: leave them out of the text.
        stream: as server-sent events.
        include_usage: in a last event.
        token_ids: return them.
    """

    chat: bool
    prompt: list[int] | dict[str, Any]
    gate: GateSettings
    options: dict[str, Any]
    max_tokens: int | None
    min_tokens: int
    seed: int | None
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    stream: bool
    include_usage: bool
    token_ids: bool

    def segment(self, written: int, room: int) -> dict[str, Any]:
        """Options of the request for what comes after so many tokens.

        Args:
            written: tokens of the answer that there are.
            room: tokens that it may have.
        """
        options = {**self.options, "max_tokens": room - written}
        if self.min_tokens > written:
            options["min_tokens"] = self.min_tokens - written
        if self.seed is not None:
            # the same seed would draw with the same numbers after every hand-over
            options["seed"] = self.seed if not written else _other_seed(self.seed, written)
        return options


def _other_seed(seed: int, written: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + written) % 2**63


def read(body: Any, *, chat: bool, gate: GateSettings) -> Asked:
    """Check a request.

    Args:
        body: its JSON.
        chat: whether it came to `/v1/chat/completions`.
        gate: settings that it may change for itself.

    Raises:
        BadRequestError: names a field that is wrong, or that cannot be had across two models.
    """
    if not isinstance(body, dict):
        raise BadRequestError(f"the body is {body!r:.40}: give a JSON object")
    known = {*HANDED_ON, *OWN, *WITHOUT_EFFECT, *(TEMPLATE if chat else ())}
    for name, value in body.items():
        if name not in known and value not in (None, False, 0, "", [], {}) and value != NEUTRAL.get(name):
            why = WHY.get(name, "it is not known here")
            raise BadRequestError(f"{name} is {value!r:.60}, which trimtab route does not support: {why}", name)
    xargs = body.get("vllm_xargs") or {}
    if not isinstance(xargs, dict):
        raise BadRequestError(f"vllm_xargs is {xargs!r:.60}: give an object", "vllm_xargs")
    options = {name: body[name] for name in HANDED_ON if body.get(name) is not None}
    if others := {name: value for name, value in xargs.items() if not _ours(name)}:
        options["vllm_xargs"] = others
    streaming = body.get("stream_options") or {}
    if not isinstance(streaming, dict):
        raise BadRequestError(f"stream_options is {streaming!r:.60}: give an object", "stream_options")
    max_tokens = _count(body, "max_completion_tokens") if chat else None
    if max_tokens is None:
        max_tokens = _count(body, "max_tokens")
    if max_tokens is None and not chat:
        max_tokens = 16  # as OpenAI's and vLLM's servers
    if max_tokens == 0:
        raise BadRequestError("max_tokens is 0: give 1 or more", "max_tokens")
    return Asked(
        chat=chat,
        prompt=_messages(body) if chat else _prompt(body),
        gate=gate_of(xargs, gate),
        options=options,
        max_tokens=max_tokens,
        min_tokens=_count(body, "min_tokens") or 0,
        seed=_seed(body),
        stop=_stop(body),
        include_stop=_flag(body, "include_stop_str_in_output", False),
        skip_special_tokens=_flag(body, "skip_special_tokens", True),
        stream=_flag(body, "stream", False),
        include_usage=bool(streaming.get("include_usage")),
        token_ids=_flag(body, "return_token_ids", False),
    )


def gate_of(xargs: Mapping[str, Any], gate: GateSettings) -> GateSettings:
    """A request's own settings, the proxy's where it says nothing.

    Raises:
        BadRequestError: a value out of range, or an option that is none.
    """
    chosen: dict[str, Any] = {}
    for name, value in xargs.items():
        if not _ours(name):
            continue
        setting = name.removeprefix(PREFIX)
        if name == START:
            if value not in ("small", "large"):
                raise BadRequestError(f"{START} is {value!r}: give small or large", START)
            chosen["start_large"] = value == "large"
            continue
        if setting not in GATE:
            known = ", ".join((*(PREFIX + setting for setting in GATE), START))
            raise BadRequestError(f"vllm_xargs has {name!r}: give of {known}", name)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise BadRequestError(f"{name} is {value!r}: give a number", name)
        chosen[setting] = value
    try:
        asked = replace(gate, **chosen)
        check_window(asked)
    except InputError as error:
        # the message begins with the setting's name
        name = PREFIX + str(error).partition(" ")[0]
        raise BadRequestError(f"{PREFIX}{error}", name) from error
    return asked


def check_window(gate: GateSettings) -> None:
    """Refuse a window that would fill the proxy's memory.

    Raises:
        InputError: it is longer than LONGEST_WINDOW.
    """
    if gate.window > LONGEST_WINDOW:
        raise InputError(f"window is {gate.window}: give at most {LONGEST_WINDOW} tokens")


def _ours(name: str) -> bool:
    return name.startswith(PREFIX) and name not in SERVERS_OWN


def _prompt(body: Mapping[str, Any]) -> list[int] | dict[str, Any]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str):
        special = _flag(body, "add_special_tokens", True)
        return {"prompt": prompt, "add_special_tokens": special}
    if not isinstance(prompt, list) or not prompt or not all(type(token) is int and token >= 0 for token in prompt):
        raise BadRequestError(f"prompt is {prompt!r:.60}: give one text, or the token ids of one", "prompt")
    return prompt


def _messages(body: Mapping[str, Any]) -> dict[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError(f"messages is {messages!r:.60}: give a list of messages", "messages")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else []
        if not isinstance(message, dict) or any(not isinstance(part, dict) or "text" not in part for part in parts):
            # only their place in the text would reach the models
            raise BadRequestError(f"messages has {message!r:.60}: give texts, no images or sounds", "messages")
    return {"messages": messages, **{name: body[name] for name in TEMPLATE if body.get(name) is not None}}


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise BadRequestError(f"stop is {stop!r:.60}: give a text or a list of texts", "stop")
    return tuple(strings)


def _seed(body: Mapping[str, Any]) -> int | None:
    seed = body.get("seed")
    if seed is not None and (type(seed) is not int or not -(2**63) <= seed < 2**63):
        raise BadRequestError(f"seed is {seed!r:.60}: give a whole number of 64 bits", "seed")
    return seed


def _count(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise BadRequestError(f"{name} is {value!r:.60}: give a whole number of at least 0", name)
    return value


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequestError(f"{name} is {value!r:.60}: give true or false", name)
    return value
