"""Lossless decoding with low-bit weights in a real engine: they draft, full precision verifies."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from tests.integrations.vllm.composite.running import assert_same_or_tied, generated, log_probs
from tests.integrations.vllm.engine import run
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.sampled_texts import assert_drawn_from, text_shares
from tests.integrations.vllm.texts import TEXTS

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

TOKENS = 32
SAMPLES = 300
DRAFTS = {"method": "draft_model", "quantization": "trimtab-w8a16", "num_speculative_tokens": 6}
SAMPLED = {"prompt": TEXTS[0], "temperature": 0.8, "top_k": 3, "max_tokens": 2, "ignore_eos": True}


def requests(family: Family) -> list[dict[str, Any]]:
    greedy = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    return [{"prompt": family.tokenizer(text).input_ids, **greedy} for text in TEXTS]


def test_text_is_the_full_precision_models(family: Family) -> None:
    """Twelve prompts in flight, greedy beside sampled ones; without drafts, and with those of the low-bit weights."""
    model, asked = family.directories["large"], requests(family)
    options: dict[str, Any] = {"model": str(model), "max_num_seqs": 12, "max_num_batched_tokens": 96}
    plain = run(asked, **options)
    ours = run([*asked, *[SAMPLED] * SAMPLES], speculative_config=DRAFTS | {"model": str(model)}, **options)
    prompts = [request["prompt"] for request in asked]

    def scores(text: list[int], _: int) -> Tensor:
        return log_probs(family.models["large"], text)

    expected, found = ([samples[0]["tokens"] for samples in result["outputs"]] for result in (plain, ours))
    print("ties", assert_same_or_tied(prompts, found[: len(prompts)], expected, scores))
    metrics = ours["metrics"]
    accepted, windows = (metrics[f"vllm:spec_decode_num_{name}"] for name in ("accepted_tokens", "drafts"))
    # of other weights few would be kept; most windows are sampled ones, which take a draft by its probability only
    assert accepted > 2 * windows
    shares = text_shares([family.models["large"]] * 2, prompts[0], SAMPLED["temperature"], SAMPLED["top_k"])
    assert_drawn_from(shares, found[len(prompts) :])


def test_the_second_runner_writes_the_same(family: Family) -> None:
    """In Triton's interpreter, so a few tokens."""
    pytest.importorskip("triton")
    model, asked = family.directories["large"], [request | {"max_tokens": 8} for request in requests(family)[:3:2]]
    ours = run(
        asked,
        v2=True,
        model=str(model),
        speculative_config=DRAFTS | {"model": str(model)},
        max_num_seqs=2,
        max_model_len=64,
        max_num_batched_tokens=64,
    )
    assert ours["v2"]
    expected = generated(family.models["large"], [request["prompt"] for request in asked], 8)
    assert [samples[0]["tokens"] for samples in ours["outputs"]] == expected
    accepted, windows = (ours["metrics"][f"vllm:spec_decode_num_{name}"] for name in ("accepted_tokens", "drafts"))
    assert accepted > 2 * windows
