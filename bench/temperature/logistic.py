"""Multinomial logistic regression with L2, its strength chosen by cross-validation over groups."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

STRENGTHS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)


class Head(NamedTuple):
    """`vectors @ weight.T + bias` are the logits of the classes; `[classes, width]` and `[classes]` float64."""

    weight: Tensor
    bias: Tensor

    def logits(self, vectors: Tensor) -> Tensor:
        """`[rows, classes]` float64."""
        return vectors.double() @ self.weight.T + self.bias


def fit(vectors: Tensor, labels: Tensor, classes: int, strength: float) -> Head:
    """The minimum of mean cross-entropy plus `strength` times the sum of squared weights; biases are free.

    Args:
        vectors: `[rows, width]`.
        labels: `[rows]` int64 below `classes`.
        classes: how many there are.
        strength: of the penalty.
    """
    vectors = vectors.double()
    weight = torch.zeros(classes, vectors.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(vectors @ weight.T + bias, labels) + strength * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Head(weight.detach(), bias.detach())


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
