"""A logits processor that refuses requests and processes no logits: where vLLM lets a plug-in answer HTTP 400.

Tested with vLLM 0.31 and 0.32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .processors import ProcessorV1, ProcessorV2


class RequestCheck(ProcessorV1, ProcessorV2):
    """Subclasses have `validate_params`, which vLLM calls in the server's process; on either model runner."""

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        """True: it changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing to follow."""

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """No request needs processing."""
        return False

    def apply_staged_writes(self) -> None:
        """Nothing to write."""

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """The logits."""
        return logits
