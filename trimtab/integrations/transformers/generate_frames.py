"""What the running `generate` calls know and hand to nobody: their local variables.

`generate` forwards neither `streamer=` to a custom method nor the prompts' mask to a logits processor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from transformers import GenerationMixin

_GENERATE_CODE = getattr(GenerationMixin.generate, "__wrapped__", GenerationMixin.generate).__code__


def generate_locals() -> Iterator[dict[str, Any]]:
    """Local variables of the `generate` calls that are running this code, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _GENERATE_CODE:
            yield frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]


def generate_given(processor: object) -> dict[str, Any] | None:
    """Of the outermost running `generate` that was given this processor: an assistant drafts in one inside it."""
    found = None
    for known in generate_locals():
        if any(each is processor for each in known.get("prepared_logits_processor") or ()):
            found = known
    return found
