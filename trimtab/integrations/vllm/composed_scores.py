"""Scores of the next token from the logits of a composite model's parts; the mathematics is in decoding/."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...decoding.contrast import steer, widened
from ...decoding.fusion import Fusion, fuse
from .composed_directory import Composition
from .strengths import SEARCH


def composed_scores(
    composition: Composition,
    target: Tensor,
    members: Sequence[Tensor],
    strengths: Tensor,
    chosen: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The target's own logits where the strength is 0, elsewhere log-probabilities of the composed distribution.

    Ids that not all models have are -inf in the latter.

    Args:
        composition: which method.
        target: `[rows, vocab]` logits.
        members: `[rows, vocab]` logits each, of the base and the experts, their vocabularies padded as they may be.
        strengths: `[rows]` float32, at least 0, `SEARCH` or `UNCOUNTED`.
        chosen: hears of the rows whose alpha was searched: `[rows, experts]`, and `[rows]` bool, whether a request's.

    Returns:
        `[rows, vocab]` float32.
    """
    scores = target.float()
    width = min(part.shape[-1] for part in (target, *members))
    parts = [part[:, :width].float() for part in (target, *members)]
    for searched in (False, True):
        rows = ((strengths < 0) if searched else (strengths > 0)).nonzero()[:, 0]
        if not len(rows):
            continue
        if scores is target:
            scores = target.clone()
        here = parts if len(rows) == len(target) else [part[rows] for part in parts]
        if composition.method == "fusion":
            fusion = _fusion(composition, here, None if searched else strengths[rows])
            found = fusion.log_probs
            if searched and chosen is not None:
                chosen(fusion.alpha, strengths[rows] == SEARCH)
        else:
            found = _steer(here, strengths[rows])
        scores[rows] = widened(found, target.shape[-1])
    return scores


def _fusion(composition: Composition, parts: list[Tensor], strengths: Tensor | None) -> Fusion:
    target, base, *experts = parts
    search = {"alpha_max": composition.alpha_max}
    return fuse(target, base, torch.stack(experts), alpha=strengths, active=composition.active, **search)


def _steer(parts: list[Tensor], strengths: Tensor) -> Tensor:
    target, base = parts
    return steer(target.log_softmax(-1), base.log_softmax(-1), None, gamma=strengths[:, None], eta=0.0)
