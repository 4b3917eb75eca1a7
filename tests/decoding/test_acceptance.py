"""Emitted tokens are distributed as the verifier's probabilities, whatever was drafted.

Statistics: chi-square of `DRAWS` tokens at a level of `ALPHA` per test function, divided by the number of comparisons
that the function and its parameters make (Bonferroni), so a correct implementation fails a function with probability
at most 1e-3 over the choice of seeds. Seeds are fixed: a test that passes goes on passing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from trimtab.decoding.acceptance import NO_DRAFT, greedy_token, sampled_token

ALPHA = 1e-3
DRAWS = 200_000
VOCABS = (8, 17, 50)


def random_probs(seed: int, *shape: int) -> Tensor:
    """Softmax of normal scores: probabilities over about three orders of magnitude, none of them 0."""
    return (1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def p_value(tokens: Tensor, probs: Tensor) -> float:
    """Of the hypothesis that `tokens` were drawn from `probs`; 0 if one of them is impossible."""
    counts = tokens.bincount(minlength=len(probs)).double()
    possible = probs > 0
    if counts[~possible].any():
        return 0.0
    expected = probs[possible].double()
    expected *= len(tokens) / expected.sum()
    assert expected.min() > 5  # else chi-square would not hold
    return float(stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue)


def draw(probs: Tensor, draft: Tensor | int, draft_probs: Tensor | None = None, *, seed: int) -> tuple[Tensor, Tensor]:
    """`DRAWS` rows of one distribution each: what `sampled_token` emits for them."""
    drafts = torch.as_tensor(draft).expand(DRAWS)
    proposal = None if draft_probs is None else draft_probs.expand(DRAWS, -1)
    return sampled_token(probs.expand(DRAWS, -1), drafts, proposal, torch.Generator().manual_seed(seed))


def drawn_from(probs: Tensor, seed: int) -> Tensor:
    """`DRAWS` drafts."""
    return torch.multinomial(probs, DRAWS, replacement=True, generator=torch.Generator().manual_seed(seed))


def test_greedy_is_argmax_and_accepts_its_own_draft() -> None:
    """The token is the argmax whatever was drafted; it is accepted when it is the draft."""
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 1.0], [0.0, 1.0, 2.0]])
    token, accepted = greedy_token(scores, torch.tensor([1, 2, NO_DRAFT]))
    assert token.tolist() == [1, 0, 2]
    assert accepted.tolist() == [True, False, False]


def test_greedy_takes_any_leading_shape() -> None:
    """A whole window at once is the same as position by position; processed scores of -inf never win."""
    scores = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(0))
    scores[..., 5] = -torch.inf
    draft = torch.randint(NO_DRAFT, 11, (3, 4), generator=torch.Generator().manual_seed(1))
    token, accepted = greedy_token(scores, draft)
    assert token.shape == accepted.shape == (3, 4)
    assert torch.equal(token, scores.argmax(-1))
    assert torch.equal(accepted, token == draft)
    for position in range(4):
        assert torch.equal(greedy_token(scores[:, position], draft[:, position])[0], token[:, position])


def test_sampled_without_draft() -> None:
    """(a) No draft in any row: plain sampling, nothing accepted. Three comparisons."""
    for seed, vocab in enumerate(VOCABS):
        probs = random_probs(seed, vocab)
        token, accepted = draw(probs, NO_DRAFT, seed=seed)
        assert not accepted.any()
        assert p_value(token, probs) > ALPHA / len(VOCABS)


def test_sampled_with_every_point_mass_draft() -> None:
    """(b) A drafter without probabilities, each token as the draft: tokens as `probs`, accepted as often as p(x).

    18 comparisons.
    """
    probs = random_probs(3, 9)
    for draft in range(9):
        token, accepted = draw(probs, draft, seed=draft)
        assert torch.equal(accepted, token == draft)
        assert p_value(token, probs) > ALPHA / 18
        rate = stats.binomtest(int(accepted.sum()), DRAWS, float(probs[draft]))
        assert rate.pvalue > ALPHA / 18


def test_point_mass_draft_of_probability_0_and_1() -> None:
    """(b) An impossible draft is never accepted and costs nothing; a certain one always is."""
    probs = torch.tensor([0.3, 0.0, 0.5, 0.2])
    token, accepted = draw(probs, 1, seed=0)
    assert not accepted.any()
    assert p_value(token, probs) > ALPHA
    token, accepted = draw(torch.tensor([0.0, 1.0, 0.0]), 1, seed=1)
    assert accepted.all()
    assert (token == 1).all()
    token, accepted = draw(torch.tensor([0.0, 1.0, 0.0]), 2, seed=2)
    assert not accepted.any()
    assert (token == 1).all()


@pytest.mark.parametrize("vocab", VOCABS)
def test_sampled_with_drawn_draft(vocab: int) -> None:
    """(c) Drafts drawn from q: tokens as p, accepted as often as sum min(p, q). 18 comparisons."""
    for seed in range(3):
        probs, proposal = random_probs(10 + seed, vocab), random_probs(20 + seed, vocab)
        token, accepted = draw(probs, drawn_from(proposal, 30 + seed), proposal, seed=40 + seed)
        assert p_value(token, probs) > ALPHA / 18
        rate = stats.binomtest(int(accepted.sum()), DRAWS, float(torch.minimum(probs, proposal).double().sum()))
        assert rate.pvalue > ALPHA / 18


def test_drawn_draft_from_partly_disjoint_support() -> None:
    """(c) q covers tokens that p cannot emit and misses some that it can: still exactly p."""
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0, 0.0])
    proposal = torch.tensor([0.0, 0.3, 0.1, 0.0, 0.4, 0.2])
    token, _ = draw(probs, drawn_from(proposal, 0), proposal, seed=1)
    assert p_value(token, probs) > ALPHA


def test_draft_from_the_same_distribution_is_accepted() -> None:
    """q = p: every draft is kept, so the tokens are the drafts."""
    probs = random_probs(5, 20)
    drafts = drawn_from(probs, 6)
    token, accepted = draw(probs, drafts, probs, seed=7)
    assert accepted.all()
    assert torch.equal(token, drafts)


@pytest.mark.parametrize("with_probs", [False, True])
def test_rows_of_one_batch_are_independent(with_probs: bool) -> None:
    """Rows with and without drafts, of different distributions, in one call: each is exact. Six comparisons in all."""
    kinds = DRAWS // 4
    probs, proposal = random_probs(8, 3, 12), random_probs(9, 3, 12)
    rows = torch.arange(3).repeat(kinds)
    drafts = torch.full((len(rows),), 4)
    if with_probs:
        drafts = torch.multinomial(proposal[rows], 1, generator=torch.Generator().manual_seed(1))[:, 0]
    drafts[rows == 1] = NO_DRAFT
    token, accepted = sampled_token(
        probs[rows], drafts, proposal[rows] if with_probs else None, torch.Generator().manual_seed(2)
    )
    assert not accepted[rows == 1].any()
    assert torch.equal(token[accepted], drafts[accepted])
    for row in range(3):
        assert p_value(token[rows == row], probs[row]) > ALPHA / 6


@pytest.mark.parametrize("with_probs", [False, True])
def test_window_of_two_drafts_gives_the_joint_distribution(with_probs: bool) -> None:
    """Two positions, the second conditional on the first: pairs of emitted tokens as p(x) p(y | x). Two comparisons.

    The second draft counts only where the first was kept; else the second token is an ordinary step.
    """
    vocab = 6
    first, second = random_probs(1, vocab), random_probs(2, vocab, vocab)
    q_first, q_second = random_probs(3, vocab), random_probs(4, vocab, vocab)
    source = torch.Generator().manual_seed(5)
    if with_probs:
        draft = drawn_from(q_first, 6)
        next_draft = torch.multinomial(q_second[draft], 1, generator=source)[:, 0]
    else:
        draft = torch.full((DRAWS,), int(first.argmax()))
        next_draft = torch.full((DRAWS,), 2)
    x, kept = draw(first, draft, q_first if with_probs else None, seed=7)
    y, kept_next = sampled_token(
        second[x], torch.where(kept, next_draft, NO_DRAFT), q_second[draft] if with_probs else None, source
    )
    assert kept.any()
    assert not kept.all()
    assert not kept_next[~kept].any()
    assert p_value(x * vocab + y, (first[:, None] * second).flatten()) > ALPHA / 2


@pytest.mark.parametrize("vocab", VOCABS)
def test_power_two_percent_of_the_mass(vocab: int) -> None:
    """The chi-square above sees 2% of the mass on a wrong token, wherever it comes from (p-value below 1e-6)."""
    probs = random_probs(vocab, vocab)
    largest = int(probs.argmax())
    for token in range(vocab):
        if token != largest:
            moved = probs.clone()
            moved[token] += 0.02
            moved[largest] -= 0.02
            assert p_value(drawn_from(moved, token), probs) < 1e-6


@pytest.mark.parametrize("with_probs", [False, True])
def test_power_accepting_two_percent_too_often(with_probs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting with a probability that is 0.02 too high fails the tests of (b) and (c)."""
    rand: Callable[..., Tensor] = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: rand(*args, **kwargs) - 0.02)
    for seed in range(3):
        probs, proposal = random_probs(10 + seed, 17), random_probs(20 + seed, 17)
        if with_probs:
            token, _ = draw(probs, drawn_from(proposal, 30 + seed), proposal, seed=40 + seed)
        else:
            token, _ = draw(probs, seed, seed=40 + seed)
        assert p_value(token, probs) < 1e-6


@pytest.mark.parametrize("with_probs", [False, True])
def test_power_residual_that_keeps_the_draft(with_probs: bool) -> None:
    """Sampling from p after a rejection, instead of from what is left of it, fails the tests of (b) and (c)."""
    for seed in range(3):
        probs, proposal = random_probs(10 + seed, 17), random_probs(20 + seed, 17)
        if with_probs:
            token, accepted = draw(probs, drawn_from(proposal, 30 + seed), proposal, seed=40 + seed)
        else:
            token, accepted = draw(probs, int(probs.argmax()), seed=40 + seed)
        broken = torch.where(accepted, token, drawn_from(probs, 50 + seed))
        assert p_value(broken, probs) < 1e-6


def test_p_equal_to_q_yet_rejected_samples_from_p(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of p - q: the token comes from p, and no row is nan or impossible."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.ones(shape))  # u q < p fails wherever p == q
    probs = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25])
    token, accepted = draw(probs, 2, probs, seed=0)
    assert not accepted.any()
    assert p_value(token, probs) > ALPHA


def test_rejections_that_rounding_alone_causes() -> None:
    """The same with torch's own numbers: a subnormal q that u cannot shrink, and a draft that p and q both exclude."""
    probs = torch.tensor([0.25, 0.75, 1e-45, 0.0])
    token, accepted = draw(probs, 2, probs, seed=0)
    assert not accepted.all()
    assert ((token < 2) | accepted).all()
    token, accepted = draw(probs, 3, probs, seed=1)
    assert not accepted.any()
    assert (token < 2).all()


def test_p_nowhere_above_q_samples_from_p(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not sum to 1 in float32 may leave no residual at all; the token is still one of p's."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2**-24))
    token, accepted = draw(torch.tensor([0.0, 0.5, 0.5 - 2**-25]), 2, torch.tensor([0.0, 0.5, 0.5]), seed=0)
    assert not accepted.any()
    assert set(token.tolist()) == {1, 2}


@pytest.mark.parametrize("with_probs", [False, True])
def test_impossible_tokens_are_never_emitted(with_probs: bool) -> None:
    """Random supports and any draft, possible or not: every emitted token has p > 0."""
    source = torch.Generator().manual_seed(0)
    rows, vocab = 50_000, 12
    probs, proposal = random_probs(1, rows, vocab), random_probs(2, rows, vocab)
    for dense in (probs, proposal):
        dense[torch.rand(rows, vocab, generator=source) < 0.6] = 0.0
        dense[dense.sum(-1) == 0, 3] = 1.0
        dense /= dense.sum(-1, keepdim=True)
    draft = torch.randint(NO_DRAFT, vocab, (rows,), generator=source)
    if with_probs:
        drafted = torch.multinomial(proposal, 1, generator=source)[:, 0]
        draft = torch.where(draft == NO_DRAFT, NO_DRAFT, drafted)
    token, accepted = sampled_token(probs, draft, proposal if with_probs else None, source)
    assert (probs.gather(1, token[:, None]) > 0).all()
    assert torch.equal(token[accepted], draft[accepted])
    assert accepted.any()
    assert not accepted[draft == NO_DRAFT].any()


def test_generator_makes_tokens_reproducible() -> None:
    """The same generator state gives the same tokens, and torch's global state is left alone."""
    probs, proposal = random_probs(1, 10), random_probs(2, 10)
    before = torch.get_rng_state()
    first = draw(probs, drawn_from(proposal, 3), proposal, seed=4)
    second = draw(probs, drawn_from(proposal, 3), proposal, seed=4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(before, torch.get_rng_state())
