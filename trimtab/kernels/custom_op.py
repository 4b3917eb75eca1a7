"""Registration of an operation with torch, so that `torch.compile` and CUDA graphs take it as one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("trimtab", "DEF")


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The operator `torch.ops.trimtab.<name>`.

    Defined by schema and not by `torch.library.custom_op`, whose wrapper costs four times as much for each call.

    Args:
        schema: `name(Tensor x, ...) -> Tensor`; no argument is changed, no result shares memory with one.
        run: computes it, on whatever device the tensors are on.
        fake: makes results of the right shape, dtype and device without computing them.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"trimtab::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.trimtab, name)
    return operator
