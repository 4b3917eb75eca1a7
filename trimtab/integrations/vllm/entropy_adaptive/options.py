"""What an engine and a request say about entropy-adaptive decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ....decoding.entropy_gate import GateSettings
from ....errors import InputError

SECTION = "entropy_adaptive"
REQUEST = "trimtab_threshold"
"""The request's own threshold in bits, in `vllm_xargs` or `SamplingParams.extra_args`."""

REQUESTS = "trimtab.integrations.vllm.entropy_adaptive.requests:EntropyAdaptiveRequests"

SETTINGS = tuple(field.name for field in fields(GateSettings) if field.name != "start_large")


def gate_settings(section: Mapping[str, Any]) -> GateSettings:
    """The engine's settings: `--additional-config '{"trimtab": {"entropy_adaptive": {"threshold": 0.3}}}'`.

    The large model writes first: its pass over the prompt has that token's distribution already.

    Args:
        section: keys of SETTINGS.

    Raises:
        InputError: the threshold is missing, or a value out of range.
    """
    if "threshold" not in section:
        raise InputError(f'additional_config["trimtab"]["{SECTION}"] has no threshold: give {{"threshold": BITS}}')
    return GateSettings(**section, start_large=True)


def check_speculative_config(config: Any) -> None:
    """Refuse an engine whose speculative decoding cannot carry the method.

    Raises:
        InputError: there is no draft model, or drafts are not sampled from its distribution.
    """
    if config is None or config.method != "draft_model":
        found = None if config is None else config.method
        raise InputError(
            f'speculative_config["method"] is {found!r}: entropy-adaptive decoding needs '
            '{"method": "draft_model", "model": SMALL, "num_speculative_tokens": 8, '
            '"draft_sample_method": "probabilistic"}'
        )
    if config.draft_sample_method != "probabilistic":
        raise InputError(
            f'speculative_config["draft_sample_method"] is {config.draft_sample_method!r}: give "probabilistic", or '
            "the small model's tokens would not be sampled where a request asks for sampling"
        )


def check_requests_are_checked(processors: Sequence[Any] | None) -> None:
    """Refuse an engine that would let a bad threshold in, where it can only be ignored or stop the engine.

    Raises:
        InputError: the processor that checks requests is not named.
    """
    if REQUESTS not in (processors or ()):
        raise InputError(f"logits_processors is {processors!r}: add {REQUESTS!r}, which checks what requests ask for")


def request_threshold(extra_args: Mapping[str, Any] | None) -> float | None:
    """The threshold that a request asks for, or None.

    Raises:
        InputError: it is no number of at least 0.
    """
    value = (extra_args or {}).get(REQUEST)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise InputError(f"{REQUEST} is {value!r}: give an entropy in bits, 0 or more")
    return float(value)


def most_tokens(max_tokens: int | None) -> int:
    """The request's `max_tokens`, or more than any text has."""
    return 2**40 if max_tokens is None else max_tokens
