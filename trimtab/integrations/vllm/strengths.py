"""How strongly a composite model is pushed for one request: read from it, and carried to its rows of logits.

A strength is a number of at least 0 (0: the plain target), or `SEARCH`: alpha is found at every token. It travels with
the hidden states as extra columns, so that whatever rows vLLM picks of them (sampled positions, drafts to verify,
positions of the prompt) come with their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .composed_directory import Composition, Method

SEARCH = -1.0
UNCOUNTED = -2.0
"""As `SEARCH`, for rows of no request: those of a profiling run."""
DYNAMIC = "dynamic"
FIELDS: dict[Method, str] = {"fusion": "trimtab_alpha", "steer": "trimtab_gamma"}
"""Key of `vllm_xargs`, alias `SamplingParams.extra_args`."""


def default_strength(composition: Composition) -> float:
    """Of requests that ask for none."""
    return SEARCH if composition.strength is None else composition.strength


def idle_strength(default: float) -> float:
    """Of rows that belong to no request, which cost what those do that ask for nothing."""
    return UNCOUNTED if default == SEARCH else default


def requested_strength(method: Method, extra_args: Mapping[str, Any] | None) -> float | None:
    """What a request asks for, None where it asks for nothing.

    Raises:
        InputError: names the field.
    """
    given = extra_args or {}
    for other, field in FIELDS.items():
        if other != method and field in given:
            raise InputError(f"{field} is given, and this model is composed for {method}: use {FIELDS[method]}")
    field = FIELDS[method]
    if field not in given:
        return None
    value = given[field]
    if method == "fusion" and value == DYNAMIC:
        return SEARCH
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST:
        wanted = f"'{DYNAMIC}' or a number" if method == "fusion" else "a number"
        raise InputError(f"{field} is {value!r}: give {wanted} of at least 0")
    return float(value)


_LARGEST = float(torch.finfo(torch.float32).max)


def columns(dtype: torch.dtype) -> int:
    """Columns of hidden states of this dtype that hold one float32."""
    return math.ceil(torch.float32.itemsize / dtype.itemsize)


def as_columns(strengths: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of `[rows]` float32 as `[rows, columns(dtype)]`; nothing is rounded."""
    return strengths[:, None].contiguous().view(dtype)


def from_columns(hidden: Tensor) -> Tensor:
    """`[rows]` float32 from what `as_columns` made."""
    # a copy, since a slice may begin between the bytes of a float32
    return hidden.clone(memory_format=torch.contiguous_format).view(torch.float32)[:, 0]
