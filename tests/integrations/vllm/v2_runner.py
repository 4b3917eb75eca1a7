"""vLLM's second model runner on a machine without a GPU: its own code, every kernel in Triton's interpreter.

vLLM takes Triton to be there if one of its back ends is active, so one called cpu is entered. For tests: it is slow.
"""

from __future__ import annotations

import os
from typing import Any


def enable() -> None:
    """Prepare this process; before vllm is imported, and with the engine in this process."""
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import numpy as np
    from triton.backends import Backend, backends
    from triton.backends.compiler import GPUTarget
    from triton.runtime import interpreter

    class Driver:
        def __init__(self, *arguments: Any) -> None: ...

        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cpu", 0, 1)

    def with_boolean_mask(name: str, position: int) -> None:
        """The interpreter refuses integer masks, which compiled Triton takes."""
        original = getattr(interpreter.InterpreterBuilder, name)

        def patched(self: Any, *arguments: Any, **options: Any) -> Any:
            mask = arguments[position]
            if mask.data.dtype != np.bool_:
                mask.data = mask.data.astype(np.bool_)
            return original(self, *arguments, **options)

        setattr(interpreter.InterpreterBuilder, name, patched)

    with_boolean_mask("create_masked_load", 1)
    with_boolean_mask("create_masked_store", 2)
    backends["cpu"] = Backend(next(iter(backends.values())).compiler, Driver)
