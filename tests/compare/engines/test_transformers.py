"""Sides in transformers: plain decoding's own tokens, the first seen at no cost, and what methods tell of theirs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.ability.prompts import encoder_installed
from trimtab.compare.engines.transformers import FirstToken, ModelPool, TransformersDecoder
from trimtab.compare.prompts import Prompt
from trimtab.compare.setups import parse_setup

if TYPE_CHECKING:
    from trimtab.integrations.transformers.loading import Loaded

PROMPT = Prompt("1", "all", "Name three colours, then name the three colours again.")
TOKENS = 10


class OneModel(ModelPool):
    """Gives the fixture's model for every name."""

    def __init__(self, loaded: Loaded) -> None:
        self._only = loaded

    def get(self, name: str, dtype: str | None) -> Loaded:
        return self._only


@pytest.fixture
def plain(smollm2: Loaded, one_thread: None) -> list[int]:
    encoded = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT.text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = smollm2.model.generate(**encoded, do_sample=False, max_new_tokens=TOKENS)
    tokens: list[int] = output[0, encoded["input_ids"].shape[1] :].tolist()
    return tokens


def decoded(loaded: Loaded, text: str, seed: int = 0) -> Any:
    setup = parse_setup(text, model="smollm2-135m", engine="transformers", sampling={})
    return TransformersDecoder(setup, OneModel(loaded), None).decode(PROMPT, seed, TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "none",
        "prompt_lookup:prompt_lookup_num_tokens=3",
        "assisted:assistant_model=x,num_assistant_tokens=2",
        "quantized:bits=16",
        "steer:base=x,gamma=0",
    ],
)
def test_greedy_sides_write_what_plain_generate_writes(smollm2: Loaded, plain: list[int], text: str) -> None:
    found = decoded(smollm2, text)
    assert found.text == smollm2.tokenizer.decode(plain, skip_special_tokens=True)
    assert found.tokens == len(plain)
    assert 0 < found.first_token_seconds < found.seconds
    if text.startswith("quantized"):
        assert found.stats["new_tokens"] == TOKENS
        assert "".join(token.text for token in found.trace) == smollm2.tokenizer.decode(plain)
        kept = "confirmed" if "lossless" in text else "accepted"
        assert sum(token.accepted is True for token in found.trace) == found.stats[kept]


@pytest.mark.slow
def test_one_seed_gives_one_text(smollm2: Loaded, one_thread: None) -> None:
    texts = {seed: decoded(smollm2, "none:temperature=1", seed).text for seed in (1, 2)}
    assert decoded(smollm2, "none:temperature=1", 1).text == texts[1]
    assert texts[1] != texts[2]


@pytest.mark.slow
def test_entropy_adaptive_tells_of_each_token(smollm2: Loaded, plain: list[int]) -> None:
    found = decoded(smollm2, "ead:small=low-bit,threshold=0")  # any entropy is above: the large model writes
    assert "".join(token.text for token in found.trace) == smollm2.tokenizer.decode(plain)
    assert len(found.trace) == TOKENS
    assert all(token.entropy is not None and token.entropy >= 0 for token in found.trace)
    assert found.trace[-1].model == "large"
    assert found.stats["switches"] == 1


@pytest.mark.slow
def test_fusion_tells_the_strength_at_each_token(smollm2: Loaded, plain: list[int]) -> None:
    # an expert that is its own base has nothing to add
    found = decoded(smollm2, "fusion:small_base=x,expert=x,alpha=1")
    assert found.text == smollm2.tokenizer.decode(plain, skip_special_tokens=True)
    assert [token.alpha for token in found.trace] == [1.0] * TOKENS


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_says_so(smollm2: Loaded, one_thread: None) -> None:
    setup = parse_setup("none", model="smollm2-135m", engine="transformers", sampling={})
    side = TransformersDecoder(setup, OneModel(smollm2), False)
    with pytest.raises(ValueError, match="and the model's context is"):
        side.decode(Prompt("1", "all", "word " * 20_000), 0, TOKENS)


def test_noting_the_first_token_costs_microseconds() -> None:
    streamer, token = FirstToken(), torch.tensor([5])
    start = time.perf_counter()
    for _ in range(10_000):
        streamer.put(token)
    # a token of the smallest model takes milliseconds
    assert (time.perf_counter() - start) / 10_000 < 5e-5
    assert streamer.time is not None


@pytest.mark.slow
@encoder_installed
def test_temperature_selection_says_what_it_chose(smollm2: Loaded, one_thread: None) -> None:
    found = decoded(smollm2, "temperature:size=1B")
    assert 0 < found.stats["temperature"] <= 2
    assert decoded(smollm2, f"none:temperature={found.stats['temperature']}").text == found.text
