"""The arms of the quantised-verification benchmark: transformers' own ways to decode, and trimtab's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from trimtab import InputError, LowBitModel, QuantizedVerification

from .measure import Decode, Decoded

# A penalty in the model's own generation config would make greedy text something else than the argmax of the logits,
# which the checks of exactness and agreement take it for.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain_static": {"cache_implementation": "static"},
    # the drafts of trimtab's arms; transformers' own defaults are 10 tokens in its class, and n-grams up to 2
    "hf_prompt_lookup": {"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 3},
}
TRIMTAB: dict[str, dict[str, Any]] = {
    "full": {"bits": 16},
    "low_bit_plain": {"bits": 8, "drafter": "none"},
    "quantized": {"bits": 8},
    "lossless": {"bits": 8, "mode": "lossless"},
}
GGUF = "hf_gguf"
NAMES = (*TRANSFORMERS, *TRIMTAB, GGUF)
EXACT = ("full", "lossless")
"""Arms that promise the text of `plain`."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to decode.

    Attributes:
        decode: does it.
        settings: what a reader needs to do the same.
        method: of a trimtab arm.
    """

    decode: Decode
    settings: dict[str, Any]
    method: QuantizedVerification | None = None


def make_arms(
    names: list[str], model: PreTrainedModel, max_new_tokens: int, packed: PreTrainedModel | None = None
) -> dict[str, Arm]:
    """Arms by name, in that order, with their low-bit weights made.

    Args:
        names: some of `NAMES`; `hf_gguf` is left out without `packed`.
        model: in full precision.
        max_new_tokens: for all of them.
        packed: the same weights as transformers keeps them in GGUF blocks.

    Raises:
        InputError: a name is not in `NAMES`, or is there twice.
    """
    for name in names:
        if name not in NAMES or names.count(name) > 1:
            raise InputError(f"arm {name!r} is unknown or named twice: use each of {', '.join(NAMES)} at most once")
    arms: dict[str, Arm] = {}
    for name in names:
        if name in TRIMTAB:
            arms[name] = trimtab_arm(model, TRIMTAB[name], max_new_tokens)
        elif name in TRANSFORMERS:
            arms[name] = transformers_arm(model, TRANSFORMERS[name], max_new_tokens)
        elif packed is not None:
            arms[name] = transformers_arm(packed, {}, max_new_tokens)
    return arms


def transformers_arm(model: PreTrainedModel, options: Mapping[str, Any], max_new_tokens: int) -> Arm:
    """`model.generate` with `options`."""
    # Only where passes are not known beforehand: a hook would be traced by the compiled static cache.
    counted = "prompt_lookup_num_tokens" in options

    def decode(ids: list[int]) -> Decoded:
        passes = 0

        def count(*_: object) -> None:
            nonlocal passes
            passes += 1

        handle = model.register_forward_pre_hook(count) if counted else None
        try:
            output = model.generate(**_inputs(model, ids, max_new_tokens), **options)
        finally:
            if handle is not None:
                handle.remove()
        new = output[0, len(ids) :].tolist()
        # transformers reads the prompt and verifies the first drafts in one pass
        return Decoded(new, {"row_passes": passes, "row_tokens": len(new)} if counted else {})

    return Arm(decode, {"generate": {**GREEDY, **options}})


def trimtab_arm(model: PreTrainedModel, options: Mapping[str, Any], max_new_tokens: int) -> Arm:
    """`model.generate` with `QuantizedVerification(**options)`."""
    method = QuantizedVerification(**options)
    method.prepare(model)

    def decode(ids: list[int]) -> Decoded:
        inputs = _inputs(model, ids, max_new_tokens)
        output = model.generate(**inputs, custom_generate=method, return_dict_in_generate=True)
        stats = output.stats
        counts = {"row_passes": stats.row_passes, "row_tokens": stats.row_tokens}
        return Decoded(output.sequences[0, len(ids) :].tolist(), stats.as_dict() | counts)

    settings = {
        "mode": method.mode,
        "bits": method.bits,
        "drafter": method.drafter,
        "draft_length": method.draft_length,
        "max_ngram": method.max_ngram,
        "window": method.window,
        "low_bit": None if method.config is None else {**vars_of(method.config)},
    }
    return Arm(decode, {"generate": GREEDY, "QuantizedVerification": settings}, method)


def vars_of(config: Any) -> dict[str, Any]:
    """Fields of a dataclass with slots."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def low_bit_model(arms: Mapping[str, Arm], model: PreTrainedModel) -> tuple[str, LowBitModel] | None:
    """The first arm with low-bit weights, and the weights."""
    for name, arm in arms.items():
        low = None if arm.method is None else arm.method.prepare(model)
        if low is not None:
            return name, low
    return None


def _inputs(model: PreTrainedModel, ids: list[int], max_new_tokens: int) -> dict[str, Any]:
    input_ids = torch.tensor([ids], device=model.device)
    config = model.generation_config
    pad = config.pad_token_id
    if pad is None:
        eos = config.eos_token_id
        pad = eos[0] if isinstance(eos, list) else eos
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "max_new_tokens": max_new_tokens,
        "pad_token_id": pad,
        **GREEDY,
    }
