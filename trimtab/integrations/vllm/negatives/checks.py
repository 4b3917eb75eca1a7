"""Refuses negative prompts that an engine could not keep to the end, in the server's process.

vLLM hands `validate_params` the request and nothing of the engine, and names a processor by a text that travels to
all processes; so that text carries what the check needs, and the class of that name is made where it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from typing import Any

from vllm.sampling_params import SamplingParams

from ..request_check import RequestCheck
from .engine import TokenizerSource, limits_of, negative_ids, tokenizer_source
from .requests import Limits, check_fits, requested_negatives

_PREFIX = "Checks_"


def checks_name(vllm_config: Any) -> str:
    """`module:class` of the processor for an engine.

    Raises:
        InputError: a setting of the engine cannot be used.
    """
    told = {"limits": asdict(limits_of(vllm_config)), "tokenizer": tokenizer_source(vllm_config)}
    return f"{__name__}:{_PREFIX}{json.dumps(told).encode().hex()}"


def __getattr__(name: str) -> type[RequestCheck]:
    if not name.startswith(_PREFIX):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return _checks(name)


@cache
def _checks(name: str) -> type[RequestCheck]:
    told = json.loads(bytes.fromhex(name.removeprefix(_PREFIX)))
    limits, source = Limits(**told["limits"]), TokenizerSource(*told["tokenizer"])

    class Checks(RequestCheck):
        @classmethod
        def validate_params(cls, sampling_params: SamplingParams) -> None:
            wanted = requested_negatives(sampling_params.extra_args)
            if wanted is not None:
                lengths = [] if limits.refusal else [len(ids) for ids in negative_ids(source, wanted.texts)]
                check_fits(limits, lengths, sampling_params.max_tokens)

    return Checks
