"""Checks what requests say about entropy-adaptive decoding, before they enter the engine.

Named in `--logits-processors`, since that is where vLLM lets a plug-in refuse a request with HTTP 400; it processes no
logits. Model runner V1 takes no processors together with speculative decoding: the worker leaves it out there.
Tested with vLLM 0.32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from .options import request_threshold


class EntropyAdaptiveRequests(LogitsProcessorV1, LogitsProcessorV2):
    """A processor on either model runner that changes nothing."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a threshold that is none.

        Raises:
            InputError: `trimtab_threshold` is no number of at least 0.
        """
        request_threshold(sampling_params.extra_args)

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        """True: it changes nothing."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing to follow."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """No request needs processing."""
        return False

    def apply_staged_writes(self) -> None:
        """Nothing to write."""

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """The logits."""
        return logits
