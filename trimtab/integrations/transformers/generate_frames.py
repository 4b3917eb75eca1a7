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
