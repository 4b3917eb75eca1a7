"""What low bits cost in quality, and whether a differing token is a rounding tie."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab import Runner
from trimtab.integrations.transformers.runner import Forward
from trimtab.integrations.transformers.state import SequenceState

CHUNK = 128
"""Tokens whose logits are held at once: a vocabulary of 262,144 takes a MiB a token."""


def chunked_logits(forward: Forward, device: torch.device, ids: Sequence[int], start: int) -> Iterator[Tensor]:
    """Logits `[chunk, vocab]` after each token from position `start` on, given everything before."""
    runner = Runner(forward, SequenceState(1, len(ids)), device)
    if start:
        runner.prefill([ids[:start]])
    for begin in range(start, len(ids), CHUNK):
        part = torch.tensor([ids[begin : begin + CHUNK]])
        yield runner.extend(part, [part.shape[1]])[0]


def agreeing(forward: Forward, device: torch.device, prompt: Sequence[int], new: Sequence[int]) -> int:
    """Of the greedy tokens `new`, how many are this forward's argmax too when it is fed the others before."""
    if not new:
        return 0
    ids = [*prompt, *new[:-1]]
    logits = chunked_logits(forward, device, ids, len(prompt) - 1)
    choices = [token for chunk in logits for token in chunk.argmax(-1).tolist()]
    return sum(choice == token for choice, token in zip(choices, new, strict=True))


def negative_log_likelihood(forward: Forward, device: torch.device, ids: Sequence[int]) -> float:
    """Of all tokens but the first, in nats."""
    total, position = 0.0, 1
    for logits in chunked_logits(forward, device, ids[:-1], 0):
        target = torch.tensor(ids[position : position + len(logits)], device=logits.device)
        total += torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum").item()
        position += len(logits)
    return total


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an arm that promises the plain text first leaves it.

    Attributes:
        arm: which one.
        id: of the prompt.
        position: of the first differing token after the prompt.
        top2_gap: between the two largest logits there, in float64.
        shortfall: of the lower of the two chosen tokens' logits against the largest; `top2_gap` where the two tokens
            are the two largest.
    """

    arm: str
    id: str
    position: int
    top2_gap: float
    shortfall: float

    def is_tie(self, gap: float) -> bool:
        """Rounding may choose either token."""
        return self.shortfall < gap


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first position where the two differ, or where one of them has ended; None if they are equal."""
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


class TieJudge:
    """Looks at differing tokens with a float64 copy of the model, made when first needed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._exact: PreTrainedModel | None = None

    @torch.no_grad()
    def __call__(
        self, arm: str, id: str, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]
    ) -> Difference | None:
        """None if the two texts are equal."""
        position = first_difference(ours, theirs)
        if position is None:
            return None
        if position >= min(len(ours), len(theirs)):
            # one went on where the other stopped: no logits can explain that
            return Difference(arm, id, position, math.inf, math.inf)
        if self._exact is None:
            self._exact = copy.deepcopy(self._model).double()
        ids = torch.tensor([[*prompt, *ours[:position]]], device=self._model.device)
        logits = self._exact(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1]
        largest, second = logits.topk(2).values.tolist()
        lower = min(logits[ours[position]].item(), logits[theirs[position]].item())
        return Difference(arm, id, position, largest - second, largest - lower)
