"""What a request says about STEER's negative prompts, and whether an engine can hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....errors import InputError

NEGATIVES = "trimtab_negatives"
ETA = "trimtab_eta"
BALANCED = "trimtab_balanced"
PLAUSIBILITY = "trimtab_plausibility"
FIELDS = (NEGATIVES, ETA, BALANCED, PLAUSIBILITY)
"""Keys of `vllm_xargs`, alias `SamplingParams.extra_args`."""
DEFAULT_ETA = 0.6
"""As of `trimtab.Steer`."""
LARGEST = float(torch.finfo(torch.float32).max)
"""What a number of a request may be."""


@dataclass(frozen=True)
class Negatives:
    """Texts to go away from.

    Attributes:
        texts: the generated tokens follow each of them; averaged in log space.
        eta: how far, above 0.
        balanced: as of `decoding.contrast.steer`.
    """

    texts: tuple[str, ...]
    eta: float
    balanced: bool


@dataclass(frozen=True)
class Limits:
    """What an engine takes.

    Attributes:
        refusal: why it takes no negatives, "" if it does.
        negatives: the most in a request.
        tokens: of negatives and what follows them, all requests in flight together.
        max_model_len: of one negative and what follows it.
    """

    refusal: str
    negatives: int
    tokens: int
    max_model_len: int


def requested_negatives(extra_args: Mapping[str, Any] | None) -> Negatives | None:
    """What a request asks for; None where it asks for nothing, or for `eta` 0.

    Raises:
        InputError: names the field.
    """
    given = extra_args or {}
    eta, balanced = _eta(given), _balanced(given)
    if NEGATIVES not in given:
        if eta:
            raise InputError(f"{ETA} is {eta:g} and {NEGATIVES} is missing: give a list of texts to go away from")
        return None
    texts = given[NEGATIVES]
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
        raise InputError(f"{NEGATIVES} is {texts!r}: give a list of at least one text")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise InputError(f"{NEGATIVES}[{index}] is {text!r}: give a text")
    return None if eta == 0 else Negatives(tuple(texts), DEFAULT_ETA if eta is None else eta, balanced)


def requested_plausibility(extra_args: Mapping[str, Any] | None) -> float:
    """Beta of `decoding.contrast.plausible`, 0 where a request asks for none.

    Raises:
        InputError: names the field.
    """
    value = (extra_args or {}).get(PLAUSIBILITY, 0.0)
    if not _is_number(value) or not 0 <= value <= 1:
        raise InputError(f"{PLAUSIBILITY} is {value!r}: give a number from 0 to 1")
    return float(value)


def check_fits(limits: Limits, lengths: Sequence[int], max_tokens: int | None) -> None:
    """Refuse what an engine could not hold to the end.

    Args:
        limits: of the engine.
        lengths: tokens of each negative.
        max_tokens: that the request may generate; None for as many as the model takes.

    Raises:
        InputError: names the field and what would fit.
    """
    if limits.refusal:
        raise InputError(f"{NEGATIVES} is given, and this engine cannot keep them: {limits.refusal}")
    if len(lengths) > limits.negatives:
        raise InputError(
            f"{NEGATIVES} has {len(lengths)} texts: give at most {limits.negatives}, or start the engine with a larger "
            "`negatives` in its settings for steer"
        )
    # the last token that is generated is fed to nobody
    new = (limits.max_model_len if max_tokens is None else max_tokens) - 1
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if not min(lengths):
        raise InputError(f"{NEGATIVES} has a text without tokens: leave it out")
    _refuse(f"{NEGATIVES}[{longest}]", lengths[longest : longest + 1], new, limits.max_model_len, "the model's context")
    _refuse(NEGATIVES, lengths, new, limits.tokens, "the engine's `negative_tokens`")


def _refuse(name: str, lengths: Sequence[int], new: int, room: int, whose: str) -> None:
    tokens = sum(lengths)
    if tokens + new * len(lengths) <= room:
        return
    fitting = (room - tokens) // len(lengths) + 1
    remedy = f"set max_tokens to {fitting} or less" if fitting > 0 else "give less text"
    raise InputError(
        f"{name} has {tokens} tokens, up to {new} generated ones follow each text, and {whose} is {room}: {remedy}"
    )


def _eta(given: Mapping[str, Any]) -> float | None:
    if ETA not in given:
        return None
    value = given[ETA]
    if not _is_number(value) or not 0 <= value <= LARGEST:
        raise InputError(f"{ETA} is {value!r}: give a number of at least 0")
    return float(value)


def _balanced(given: Mapping[str, Any]) -> bool:
    value = given.get(BALANCED, False)
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise InputError(f"{BALANCED} is {value!r}: give true or false")
    return bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
