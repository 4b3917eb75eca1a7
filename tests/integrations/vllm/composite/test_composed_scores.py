"""Rows of one step with strengths of their own, held against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from trimtab.decoding.fusion import fuse
from trimtab.integrations.vllm.composed_directory import Composition
from trimtab.integrations.vllm.composed_scores import Negative, composed_scores
from trimtab.integrations.vllm.strengths import SEARCH, UNCOUNTED

FUSION = Composition("fusion", ("A",), ("trimtab_base", "trimtab_expert_a", "trimtab_expert_b"), None)
STEER = Composition("steer", ("A",), ("trimtab_base",), 0.2)


def logits(count: int, rows: int = 6, vocab: int = 50) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [2 * torch.randn(rows, vocab, generator=generator) for _ in range(count)]


def pushes(gammas: torch.Tensor, betas: float | list[float] = 0.0, places: float | list[float] = -1.0) -> torch.Tensor:
    """Of STEER."""
    beta, place = (torch.tensor(x).expand(len(gammas)) for x in (betas, places))
    return torch.stack([gammas, beta, place], 1)


def test_fusion_row_by_row():
    target, *members = logits(4)
    strengths = torch.tensor([0.0, 0.5, SEARCH, 1.0, SEARCH, 2.5])
    before = target.clone()
    found = composed_scores(FUSION, target, members, strengths[:, None])
    assert torch.equal(target, before)
    searched = fuse(target, members[0], torch.stack(members[1:])).alpha.double().numpy()
    p, q, *experts = (x.double().numpy() for x in (target, *members))
    for row, strength in enumerate(strengths.tolist()):
        alpha = searched[row] if strength == SEARCH else [strength] * 2
        pushed = p[row] + sum(a * (e[row] - q[row]) for a, e in zip(alpha, experts, strict=True))
        expected = p[row] if strength == 0 else log_softmax(pushed)
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-5)


def test_searched_alphas_are_handed_on():
    """Those of requests and, marked as such, those of no request."""
    target, *members = logits(4)
    heard = []
    strengths = torch.tensor([0.0, 0.5, SEARCH, UNCOUNTED, SEARCH, 2.5])
    found = composed_scores(FUSION, target, members, strengths[:, None], chosen=lambda *step: heard.append(step))
    [(alpha, counted)] = heard
    torch.testing.assert_close(alpha, fuse(target, members[0], torch.stack(members[1:])).alpha[2:5], atol=1e-6, rtol=0)
    assert counted.tolist() == [True, False, True]
    assert torch.equal(found[3], composed_scores(FUSION, target, members, torch.full((6, 1), SEARCH))[3])
    heard.clear()
    composed_scores(FUSION, target, members, torch.ones(6, 1), chosen=lambda *step: heard.append(step))
    assert heard == []


def test_steer_row_by_row():
    expert, base = logits(2)
    strengths = torch.tensor([0.0, 0.3, 0.0, 1.0, 0.1, 5.0])
    found = composed_scores(STEER, expert, [base], pushes(strengths))
    p, q = log_softmax(expert.double().numpy(), -1), log_softmax(base.double().numpy(), -1)
    for row, gamma in enumerate(strengths.tolist()):
        expected = expert[row].double().numpy() if gamma == 0 else log_softmax((1 + gamma) * p[row] - gamma * q[row])
        np.testing.assert_allclose(found[row].numpy(), expected, atol=2e-5)


def test_steer_away_from_negatives_row_by_row():
    """Rows 1, 2, 4 and 5 have negatives, given in that order; rows 3 and 4 a plausibility."""
    expert, base, away = logits(3)
    before = expert.clone()
    gammas = torch.tensor([0.0, 0.3, 0.0, 1.0, 0.1, 0.0])
    betas, places = [0.0, 0.0, 0.0, 0.2, 0.1, 0.0], [-1.0, 0.0, 1.0, -1.0, 2.0, 3.0]
    rows, etas = [1, 2, 4, 5], torch.tensor([0.6, 1.0, 0.2, 2.0])
    balanced = torch.tensor([False, False, True, True])
    negative = Negative(away[rows].log_softmax(-1), etas, balanced)
    found = composed_scores(STEER, expert, [base], pushes(gammas, betas, places), negative)
    assert torch.equal(expert, before)
    p, q, n = (log_softmax(x.double().numpy(), -1) for x in (expert, base, away))
    for row in range(6):
        gamma, eta, level = gammas[row].item(), 0.0, 0.0
        if row in rows:
            eta = etas[rows.index(row)].item()
            level = eta if balanced[rows.index(row)] else 0.0
        pushed = (1 + gamma + level) * p[row] - gamma * q[row] - eta * n[row]
        expected = expert[row].double().numpy() if gamma == eta == 0 else log_softmax(pushed)
        if betas[row]:
            expected = np.where(np.exp(p[row]) >= betas[row] * np.exp(p[row]).max(), expected, -np.inf)
            assert 0 < np.isinf(expected).sum() < 50
        np.testing.assert_allclose(found[row].numpy(), expected, atol=5e-5)


def test_rows_without_negatives_are_as_if_there_were_none():
    expert, base, away = logits(3)
    gammas = torch.tensor([0.0, 0.3, 0.0, 1.0, 0.1, 5.0])
    plain = composed_scores(STEER, expert, [base], pushes(gammas))
    negative = Negative(away[[3]].log_softmax(-1), torch.tensor([0.6]), torch.tensor([False]))
    found = composed_scores(STEER, expert, [base], pushes(gammas, 0.0, [-1.0, -1, -1, 0, -1, -1]), negative)
    others = torch.tensor([0, 1, 2, 4, 5])
    assert torch.equal(found[others], plain[others])
    assert not torch.equal(found[3], plain[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_the_targets_own_logits(dtype):
    target, *members = (x.to(dtype) for x in logits(4))
    found = composed_scores(FUSION, target, members, torch.zeros(6, 1))
    assert found.dtype == torch.float32
    assert torch.equal(found, target.float())


def test_a_row_does_not_see_the_others():
    target, *members = logits(4)
    strengths = torch.tensor([0.0, 0.5, SEARCH, 1.0, SEARCH, 2.5])
    together = composed_scores(FUSION, target, members, strengths[:, None])
    for row in range(6):
        alone = composed_scores(FUSION, target[[row]], [x[[row]] for x in members], strengths[[row], None])
        torch.testing.assert_close(together[[row]], alone, atol=1e-5, rtol=0)


def test_padded_ids_are_excluded_where_a_member_lacks_them():
    target, *members = logits(4)
    members[1] = members[1][:, :47]
    found = composed_scores(FUSION, target, members, torch.tensor([0.0, SEARCH, 1.0, 0.0, 1.0, SEARCH])[:, None])
    assert found.shape == target.shape
    pushed = torch.tensor([1, 2, 4, 5])
    assert (found[pushed][:, 47:] == -torch.inf).all()
    torch.testing.assert_close(found[pushed].exp().sum(-1), torch.ones(4))
    assert torch.equal(found[[0, 3]], target[[0, 3]])
