"""How near texts lie to each other and to real ones, as a sentence encoder sees them."""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import InputError
from .logistic import fit

PENALTY = 1e-3
"""On the squared weights of the classifier; near scikit-learn's default for 500 texts."""
FOLDS = 5


def pairwise_cosine(vectors: Tensor) -> float:
    """Mean cosine of two different texts; low is diverse.

    Args:
        vectors: `[texts, width]`, of any length but 0.

    Returns:
        From -1 to 1; NaN for fewer than two texts.
    """
    count = len(vectors)
    if count < 2:
        return math.nan
    # |sum of unit vectors|^2 counts every ordered pair once and every text with itself
    total = normalize(vectors.double(), dim=-1).sum(0).square().sum()
    return float((total - count) / (count * (count - 1)))


def cosine_between(vectors: Tensor, reference: Tensor) -> float:
    """Mean cosine of a text and a real one; high is near.

    Args:
        vectors: `[texts, width]`.
        reference: `[real texts, width]`.

    Returns:
        From -1 to 1; NaN where either is empty.
    """
    if not len(vectors) or not len(reference):
        return math.nan
    mean, real = (normalize(each.double(), dim=-1).mean(0) for each in (vectors, reference))
    return float(mean @ real)


def auroc(vectors: Tensor, reference: Tensor, *, folds: int = FOLDS, seed: int = 0) -> float:
    """Area under the ROC curve of a classifier that tells generated texts from real ones; 0.5 is best.

    Logistic regression, trained on the other folds; the mean over folds. Equal vectors stay in one fold, so that no
    copy of a text is both learned and asked for.

    Args:
        vectors: `[texts, width]`.
        reference: `[real texts, width]`.
        folds: of the cross-validation.
        seed: of the split.

    Returns:
        From 0 to 1.

    Raises:
        InputError: there are too few different texts of either kind for that many folds.
    """
    whole = torch.cat([vectors, reference]).double()
    generated = torch.arange(len(whole)) < len(vectors)
    fold = _folds(whole, generated, folds, seed)
    found = []
    for index in range(folds):
        unseen = fold == index
        for name, side in (("texts", generated), ("reference", ~generated)):
            if not (unseen & side).any():
                raise InputError(f"{name} has too few different texts for a classifier in {folds} folds: give more")
        head = fit(whole[~unseen], generated[~unseen].long(), 2, PENALTY)
        logits = head.logits(whole)
        score = logits[:, 1] - logits[:, 0]
        found.append(area_under_roc(score[unseen & generated], score[unseen & ~generated]))
    return sum(found) / folds


def area_under_roc(positive: Tensor, negative: Tensor) -> float:
    """Share of pairs in which the positive scores more, ties half.

    Args:
        positive: `[n]` scores.
        negative: `[m]` scores.
    """
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive)
    up_to = torch.searchsorted(ordered, positive, right=True)
    return float((below + up_to).double().mean() / (2 * len(negative)))


def _folds(whole: Tensor, generated: Tensor, folds: int, seed: int) -> Tensor:
    """Which fold each row is in, `[rows]`: real rows dealt out evenly, then generated ones that equal none of them."""
    groups, group = whole.unique(dim=0, return_inverse=True)
    real = torch.zeros(len(groups), dtype=torch.bool).index_fill_(0, group[~generated], True)
    number = torch.empty(len(groups), dtype=torch.int64)
    random = Random(seed)
    for kind in (real, ~real):
        members = kind.nonzero()[:, 0].tolist()
        random.shuffle(members)
        number[members] = torch.arange(len(members)) % folds
    return number[group]
