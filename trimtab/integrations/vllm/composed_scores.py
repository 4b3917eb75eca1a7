"""Scores of the next token from the logits of a composite model's parts; the mathematics is in decoding/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...decoding.contrast import plausible, steer, widened
from ...decoding.fusion import Fusion, fuse
from .composed_directory import Composition
from .strengths import SEARCH


class Negative(NamedTuple):
    """What some rows are pushed away from.

    Attributes:
        log_probs: `[rows, width]`, the mean over a row's negative prompts.
        eta: `[rows]` float32.
        balanced: `[rows]` bool.
    """

    log_probs: Tensor
    eta: Tensor
    balanced: Tensor


def composed_scores(
    composition: Composition,
    target: Tensor,
    members: Sequence[Tensor],
    pushes: Tensor,
    negative: Negative | None = None,
    chosen: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The target's own logits where nothing is asked for, elsewhere log-probabilities of the composed distribution.

    Ids that not all models have are -inf in the latter.

    Args:
        composition: which method.
        target: `[rows, vocab]` logits.
        members: `[rows, vocab]` logits each, of the base and the experts, their vocabularies padded as they may be.
        pushes: `[rows, numbers]` float32, a `strengths.Push` each.
        negative: of the rows whose push names one, in their order.
        chosen: hears of the rows whose alpha was searched: `[rows, experts]`, and `[rows]` bool, whether a request's.

    Returns:
        `[rows, vocab]` float32.
    """
    scores = target.float()
    width = min(part.shape[-1] for part in (target, *members))
    parts = [part[:, :width].float() for part in (target, *members)]
    strengths = pushes[:, 0]
    place = pushes[:, 2] if composition.method == "steer" else torch.full_like(strengths, -1)
    alone = place < 0
    kinds = [(alone & (strengths < 0), True), (alone & (strengths > 0), False)]
    for which, searched in kinds:
        rows = which.nonzero()[:, 0]
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
    return scores if composition.method == "fusion" else _away(scores, target, parts, pushes, negative)


def _fusion(composition: Composition, parts: list[Tensor], strengths: Tensor | None) -> Fusion:
    target, base, *experts = parts
    search = {"alpha_max": composition.alpha_max}
    return fuse(target, base, torch.stack(experts), alpha=strengths, active=composition.active, **search)


def _steer(parts: list[Tensor], strengths: Tensor) -> Tensor:
    target, base = parts
    return steer(target.log_softmax(-1), base.log_softmax(-1), None, gamma=strengths[:, None], eta=0.0)


def _away(scores: Tensor, target: Tensor, parts: list[Tensor], pushes: Tensor, negative: Negative | None) -> Tensor:
    """STEER's negatives and plausibility, for the rows that have them."""
    gamma, beta, place = pushes.unbind(1)
    if negative is not None:
        rows = (place >= 0).nonzero()[:, 0]
        scores = scores.clone() if scores is target else scores
        for balanced in (False, True):
            which = (negative.balanced == balanced).nonzero()[:, 0]
            if len(which):
                here = rows[which]
                expert, base = (part[here].log_softmax(-1) for part in parts)
                coefficients = {"gamma": gamma[here, None], "eta": negative.eta[which, None]}
                steered = steer(expert, base, negative.log_probs[which], **coefficients, balanced=balanced)
                scores[here] = widened(steered, target.shape[-1])
    rows = (beta > 0).nonzero()[:, 0]
    if len(rows):
        scores = scores.clone() if scores is target else scores
        implausible = ~plausible(target[rows].float(), beta[rows, None])
        scores[rows] = scores[rows].masked_fill(implausible, -torch.inf)
    return scores
