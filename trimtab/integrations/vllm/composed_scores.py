"""Scores of the next token from the logits of a composite model's parts; the mathematics is in decoding/."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...decoding.contrast import steer, widened
from ...decoding.fusion import fuse
from .composed_directory import Composition
from .strengths import SEARCH


def composed_scores(composition: Composition, target: Tensor, members: Sequence[Tensor], strengths: Tensor) -> Tensor:
    """The target's own logits where the strength is 0, elsewhere log-probabilities of the composed distribution.

    Ids that not all models have are -inf in the latter.

    Args:
        composition: which method.
        target: `[rows, vocab]` logits.
        members: `[rows, vocab]` logits each, of the base and the experts, their vocabularies padded as they may be.
        strengths: `[rows]` float32, at least 0 or `SEARCH`.

    Returns:
        `[rows, vocab]` float32.
    """
    scores = target.float()
    width = min(part.shape[-1] for part in (target, *members))
    parts = [part[:, :width].float() for part in (target, *members)]
    for searched in (False, True):
        rows = ((strengths == SEARCH) if searched else (strengths > 0)).nonzero()[:, 0]
        if not len(rows):
            continue
        if scores is target:
            scores = target.clone()
        here = parts if len(rows) == len(target) else [part[rows] for part in parts]
        found = _scores(composition, here, None if searched else strengths[rows])
        scores[rows] = widened(found, target.shape[-1])
    return scores


def _scores(composition: Composition, parts: list[Tensor], strengths: Tensor | None) -> Tensor:
    target, base, *experts = parts
    if composition.method == "fusion":
        search = {"alpha_max": composition.alpha_max}
        return fuse(target, base, torch.stack(experts), alpha=strengths, active=composition.active, **search).log_probs
    assert strengths is not None  # gamma is never searched
    return steer(target.log_softmax(-1), base.log_softmax(-1), None, gamma=strengths[:, None], eta=0.0)
