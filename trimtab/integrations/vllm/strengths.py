"""How a composite model is pushed for one request: read from it, and carried to its rows of logits.

A strength is a number of at least 0 (0: the plain target), or `SEARCH`: alpha is found at every token. STEER has beside
it a plausibility and, where a token is sampled, which of the step's negatives to go away from. They travel with the
hidden states as extra columns, so that whatever rows vLLM picks of them (sampled positions, drafts to verify, positions
of the prompt) come with their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .composed_directory import Composition, Method
from .negatives.requests import FIELDS as NEGATIVE_FIELDS
from .negatives.requests import LARGEST, requested_negatives, requested_plausibility

SEARCH = -1.0
NO_NEGATIVES = -1.0
UNCOUNTED = -2.0
"""As `SEARCH`, for rows of no request: those of a profiling run."""
DYNAMIC = "dynamic"
FIELDS: dict[Method, str] = {"fusion": "trimtab_alpha", "steer": "trimtab_gamma"}
"""Key of `vllm_xargs`, alias `SamplingParams.extra_args`."""


Push = tuple[float, ...]
"""`(alpha,)` of fusion, `(gamma, plausibility, place of its negatives)` of STEER; the place is that of a step."""


def default_push(composition: Composition) -> Push:
    """Of requests that ask for none."""
    strength = SEARCH if composition.strength is None else composition.strength
    return (strength,) if composition.method == "fusion" else (strength, 0.0, NO_NEGATIVES)


def requested_push(method: Method, extra_args: Mapping[str, Any] | None, default: Push) -> Push:
    """What a request asks for, `default` where it asks for nothing; its negatives have no place yet.

    Raises:
        InputError: names the field.
    """
    strength = requested_strength(method, extra_args)
    first = default[0] if strength is None else strength
    if method == "fusion":
        return (first,)
    requested_negatives(extra_args)
    return first, requested_plausibility(extra_args), NO_NEGATIVES


def idle_push(default: Push) -> Push:
    """Of rows that belong to no request, which cost what those do that ask for nothing."""
    return (UNCOUNTED, *default[1:]) if default[0] == SEARCH else default


def requested_strength(method: Method, extra_args: Mapping[str, Any] | None) -> float | None:
    """What a request asks for, None where it asks for nothing.

    Raises:
        InputError: names the field.
    """
    given = extra_args or {}
    for other, field in FIELDS.items():
        if other != method and field in given:
            raise InputError(f"{field} is given, and this model is composed for {method}: use {FIELDS[method]}")
    if method != "steer" and (others := [field for field in NEGATIVE_FIELDS if field in given]):
        raise InputError(f"{others[0]} is given, and this model is composed for {method}: compose one for steer")
    field = FIELDS[method]
    if field not in given:
        return None
    value = given[field]
    if method == "fusion" and value == DYNAMIC:
        return SEARCH
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST:
        wanted = f"'{DYNAMIC}' or a number" if method == "fusion" else "a number"
        raise InputError(f"{field} is {value!r}: give {wanted} of at least 0")
    return float(value)


def columns(dtype: torch.dtype, push: Push) -> int:
    """Columns of hidden states of this dtype that hold one push in float32."""
    return math.ceil(torch.float32.itemsize * len(push) / dtype.itemsize)


def as_columns(pushes: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of `[rows, numbers]` float32 as `[rows, columns(dtype)]`; nothing is rounded."""
    return pushes.contiguous().view(dtype)


def from_columns(hidden: Tensor) -> Tensor:
    """`[rows, numbers]` float32 from what `as_columns` made."""
    # a copy, since a slice may begin between the bytes of a float32
    return hidden.clone(memory_format=torch.contiguous_format).view(torch.float32)
