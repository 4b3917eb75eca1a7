"""Multinomial logistic regression with L2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
