"""The strength of a logistic regression's L2 penalty, by cross-validation over groups."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trimtab.synthesis.logistic import fit

STRENGTHS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)


def cross_validated(
    vectors: Tensor, labels: Tensor, groups: list[str], classes: int, folds: int = 5
) -> dict[float, tuple[float, float]]:
    """By strength: mean negative log-likelihood and accuracy on groups that the fit did not see."""
    number = {group: index % folds for index, group in enumerate(sorted(set(groups)))}
    fold = torch.tensor([number[group] for group in groups])
    found = {}
    for strength in STRENGTHS:
        loss = right = 0.0
        for index in range(folds):
            unseen = fold == index
            logits = fit(vectors[~unseen], labels[~unseen], classes, strength).logits(vectors[unseen])
            loss += float(cross_entropy(logits, labels[unseen], reduction="sum"))
            right += float((logits.argmax(-1) == labels[unseen]).sum())
        found[strength] = (loss / len(labels), right / len(labels))
    return found
