from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ability.prompts import PROMPTS, encoder_installed
from trimtab import InputError
from trimtab.ability import sentence_encoder
from trimtab.ability.sentence_encoder import MAX_TOKENS, SentenceEncoder


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@encoder_installed
def test_vectors_have_length_one_and_do_not_depend_on_the_batch(encoder: SentenceEncoder) -> None:
    texts = [*PROMPTS, "word " * 700, "x"]
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, encoder.width)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(5))
    alone = torch.cat([encoder.encode([text]) for text in texts])
    assert (vectors - alone).abs().max() < 1e-6


@encoder_installed
def test_vectors_equal_mean_pooling_written_out(encoder: SentenceEncoder) -> None:
    """One text at a time, without padding, in float64."""
    from transformers import AutoModel, AutoTokenizer

    directory = sentence_encoder.embedded_encoder()
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).double().eval()
    for text, vector in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0)
        assert torch.allclose(vector.double(), mean / mean.norm(), atol=1e-6)


@encoder_installed
def test_a_long_text_keeps_both_ends(encoder: SentenceEncoder) -> None:
    half = (MAX_TOKENS - 2) // 2
    middle = ["river " * 300, "engine " * 900]
    one, other = encoder.encode(["start " * half + text + "end " * half for text in middle])
    assert torch.allclose(one, other, atol=1e-6)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        SentenceEncoder(tmp_path)
