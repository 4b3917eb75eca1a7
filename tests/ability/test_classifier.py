from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ability.prompts import PROMPTS, encoder_installed
from trimtab.ability.classifier import HEAD, VIEWS, features, views
from trimtab.ability.sentence_encoder import SentenceEncoder


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def test_views_are_the_whole_its_ends_its_outer_lines_and_the_line_starts() -> None:
    text = "Summarise this report for me:\n\n" + "The river rose again. " * 20 + "\n  In two sentences, please.\n"
    found = views(text)
    assert found == [
        text.strip(),
        text.strip()[:40],
        text.strip()[-40:],
        "Summarise this report for me:",
        "In two sentences, please.",
        "Summarise th / The river ro / In two sente",
    ]
    assert len(found) == VIEWS


@given(st.text().filter(str.strip))
def test_no_view_is_blank_or_longer_than_said(text: str) -> None:
    whole, *pieces = views(text)
    assert whole == text.strip()
    assert all(piece.strip() and len(piece) <= 160 for piece in pieces[2:])
    assert views(f"\n {text} ") == views(text)


@encoder_installed
def test_features_are_the_vectors_of_the_views_in_order(encoder: SentenceEncoder) -> None:
    prompts = ["Hi", PROMPTS[0] + "\nThe tram too.", "Hi"]
    expected = torch.stack([encoder.encode(views(prompt)).flatten() for prompt in prompts])
    found = features(encoder, prompts)
    assert found.shape == (3, VIEWS * encoder.width)
    assert (found - expected).abs().max() < 1e-6


def test_the_head_is_small() -> None:
    assert HEAD.stat().st_size <= 100_000
