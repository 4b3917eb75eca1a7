from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from trimtab import InputError
from trimtab.synthesis.vectors import area_under_roc, auroc, cosine_between, pairwise_cosine


def rows(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_cosines_are_the_means_over_pairs() -> None:
    one, other = rows(7, 0), rows(5, 1, 0.3)
    pairs = [float(cosine_similarity(one[a], one[b], dim=0)) for a in range(7) for b in range(7) if a != b]
    assert pairwise_cosine(one) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    cross = [float(cosine_similarity(a, b, dim=0)) for a in one for b in other]
    assert cosine_between(one, other) == pytest.approx(sum(cross) / len(cross), abs=1e-6)
    assert math.isnan(pairwise_cosine(one[:1]))
    assert math.isnan(cosine_between(one, other[:0]))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_area_is_the_share_of_ordered_pairs(positive: list[int], negative: list[int]) -> None:
    won = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    found = area_under_roc(torch.tensor(positive), torch.tensor(negative))
    assert found == pytest.approx(won / (len(positive) * len(negative)))


def test_the_classifier_tells_what_can_be_told() -> None:
    """Under the null the mean over 5 folds of 80 has a standard deviation near 0.03: six are allowed."""
    assert auroc(rows(200, 0, 1.0), rows(200, 1)) > 0.98
    assert auroc(rows(200, 0), rows(200, 1)) == pytest.approx(0.5, abs=0.18)


def test_a_copied_text_is_not_learned_and_then_asked_for() -> None:
    """Real texts that were copied cannot be told from their copies; in other folds they would be told wrongly."""
    real = rows(60, 0)
    assert auroc(real.repeat(3, 1), real) == pytest.approx(0.5, abs=1e-9)


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(InputError, match="texts has too few different texts for a classifier in 5 folds"):
        auroc(rows(4, 0), rows(20, 1))
    with pytest.raises(InputError, match="reference has too few"):
        auroc(rows(20, 0), rows(1, 1).repeat(20, 1))
