"""Weighted log-probabilities against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from trimtab.decoding.contrast import contrast, plausible, steer


def random(seed: int) -> torch.Tensor:
    return (3 * torch.randn(4, 23, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("gamma", "eta"), [(0.0, 0.0), (0.2, 0.6), (1.0, 0.0), (0.0, 1.0), (0.4, 0.8)])
def test_steer_is_the_formula(gamma: float, eta: float, balanced: bool) -> None:
    expert, base, negative = random(0), random(1), random(2)
    got = steer(expert, base, negative, gamma=gamma, eta=eta, balanced=balanced)
    e, b, n = (x.double().numpy() for x in (expert, base, negative))
    z = (1 + gamma + (eta if balanced else 0)) * e - gamma * b - eta * n
    np.testing.assert_allclose(got.numpy(), log_softmax(z, axis=-1), atol=2e-5)


def test_each_row_may_have_coefficients_of_its_own() -> None:
    expert, base, negative = random(0), random(1), random(2)
    gamma, eta = torch.tensor([[0.0], [0.2], [1.0], [0.5]]), torch.tensor([[0.6], [0.0], [1.0], [1.5]])
    got = steer(expert, base, negative, gamma=gamma, eta=eta, balanced=True)
    for row in range(4):
        one = slice(row, row + 1)
        numbers = {"gamma": gamma[row].item(), "eta": eta[row].item()}
        torch.testing.assert_close(got[one], steer(expert[one], base[one], negative[one], **numbers, balanced=True))


def test_missing_terms_are_those_of_coefficient_0() -> None:
    expert, base, negative = random(0), random(1), random(2)
    torch.testing.assert_close(
        steer(expert, base, None, gamma=0.3, eta=0.0), steer(expert, base, negative, gamma=0.3, eta=0.0)
    )
    torch.testing.assert_close(
        steer(expert, None, negative, gamma=0.0, eta=0.3), steer(expert, base, negative, gamma=0.0, eta=0.3)
    )


def test_forbidden_tokens_stay_forbidden() -> None:
    expert = random(0)
    expert[:, 3] = -torch.inf
    got = contrast([(1.2, expert), (-0.2, random(1))])
    assert (got[:, 3] == -torch.inf).all()
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(4))


def test_plausible_keeps_what_is_near_the_top() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]])
    assert plausible(probs.log() + 7, 0.2).tolist() == [[True, True, True, False], [True, False, False, False]]
    assert plausible(probs.log(), 1.0).sum() == 2
    betas = torch.tensor([[0.2], [0.0]])  # 0: all are plausible
    assert plausible(probs.log() + 7, betas).tolist() == [[True, True, True, False], [True] * 4]
