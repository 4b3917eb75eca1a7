"""What a side of a comparison may be, beyond the methods of `trimtab generate`."""

from __future__ import annotations

import difflib
import re
from typing import Any

from ..errors import InputError
from ..generate_methods import CHOICES as GENERATE_CHOICES
from ..generate_methods import DYNAMIC, KINDS, OPTIONS, check_method

PEERS: dict[str, tuple[str, ...]] = {
    "prompt_lookup": ("prompt_lookup_num_tokens",),
    "assisted": ("assistant_model", "num_assistant_tokens"),
    "temperature": ("size", "table", "rule"),
}
"""transformers' own methods under transformers' own names, and temperature selection, by their options."""

_PEER_KINDS: dict[str, type] = {"prompt_lookup_num_tokens": int, "num_assistant_tokens": int}
_CHOICES = {**GENERATE_CHOICES, "rule": ("expected", "likeliest")}

METHOD_OPTIONS: dict[str, tuple[str, ...]] = {**OPTIONS, **PEERS}
KIND_OF: dict[str, type] = {**KINDS, **_PEER_KINDS}

ON_A_SERVER: dict[str, tuple[str, ...]] = {
    "none": (),
    "temperature": (),
    "ead": ("threshold",),
    "fusion": ("alpha",),
    "steer": ("gamma",),
}
"""What a request can say to a server that was started with the method: docs/vllm.md."""

IN_VLLM: dict[str, tuple[str, ...]] = {
    "none": (),
    "quantized": ("mode", "bits", "draft_length", "max_ngram", "drafter", "activation_bits"),
    "ead": ("small", "threshold", "window", "decay"),
    "fusion": ("small_base", "expert", "alpha"),
    "steer": ("base", "gamma"),
    "temperature": ("size", "table", "rule"),
}
"""Options of the methods that vLLM runs in this process."""

TRANSFORMERS, VLLM = "transformers", "vllm"


def options_of(method: str, engine: str) -> tuple[str, ...]:
    """The options that a method takes in an engine.

    Raises:
        InputError: there is no such method, or not in this engine; suggests the nearest.
    """
    known = METHOD_OPTIONS if engine == TRANSFORMERS else IN_VLLM if engine == VLLM else ON_A_SERVER
    if method not in METHOD_OPTIONS:
        raise InputError(f"there is no method {method!r}: use one of {', '.join(known)}{_near(method, known)}")
    if method not in known:
        where = "vLLM" if engine == VLLM else "a server"
        remedy = "start the server with it and compare it as none" if engine not in (TRANSFORMERS, VLLM) else "leave it"
        raise InputError(f"method {method} does not run in {where} ({', '.join(known)} do): {remedy}")
    return known[method]


def check(method: str, options: dict[str, Any], engine: str) -> None:
    """Refuse options that the method does not take in the engine, lacks, or that are out of range.

    Raises:
        InputError: names the option, its value and the remedy.
    """
    known = options_of(method, engine)
    for name, value in options.items():
        if name not in known:
            elsewhere = "" if name not in METHOD_OPTIONS[method] else f" in {engine}"
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InputError(f"{method} has no option {name!r}{elsewhere}: {takes}{_near(name, known)}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise InputError(f"{name} is {value!r}: use one of {', '.join(map(str, _CHOICES[name]))}")
        if name in _PEER_KINDS and value < 1:
            raise InputError(f"{name} is {value}: give a whole number of at least 1")
    if method == "assisted" and not options.get("assistant_model"):
        raise InputError("assistant_model is missing: assisted needs the model that drafts")
    if method in PEERS:
        return
    if engine == TRANSFORMERS:
        _as_keys(method, options)
    elif engine == VLLM:
        if options.get("mode", "quantized") != "quantized":
            raise InputError(
                "mode is 'lossless': vLLM verifies a draft once, use mode=quantized or engine=transformers"
            )
        _as_keys(method, options)
    else:  # what the server was started with is its own
        for name, value in options.items():
            if value != DYNAMIC and value < 0:
                raise InputError(f"{name} is {value:g}: give 0 or more")


def _as_keys(method: str, options: dict[str, Any]) -> None:
    try:
        check_method(method, options)
    except InputError as error:
        # its options are the keys of a set-up here
        message = re.sub(r"--([a-z][a-z_-]*)", lambda found: found[1].replace("-", "_"), str(error))
        raise InputError(message) from None


def model_names(method: str, options: dict[str, Any]) -> list[str]:
    """The models that a side needs beside its own."""
    from ..generate_methods import model_names as of_generate

    return [options["assistant_model"]] if method == "assisted" else of_generate(options)


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
