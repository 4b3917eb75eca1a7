"""Checks what requests say about entropy-adaptive decoding, before they enter the engine.

Named in `--logits-processors`. Model runner V1 takes no processors together with speculative decoding: the worker
leaves it out there. Tested with vLLM 0.31 and 0.32.
"""

from __future__ import annotations

from vllm.sampling_params import SamplingParams

from ..request_check import RequestCheck
from .options import request_threshold


class EntropyAdaptiveRequests(RequestCheck):
    """Refuses thresholds that are none."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a threshold that is none.

        Raises:
            InputError: `trimtab_threshold` is no number of at least 0.
        """
        request_threshold(sampling_params.extra_args)
