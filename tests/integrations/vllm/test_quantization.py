"""Low-bit linears in a real engine against the same ones in transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import trimtab
from tests.integrations.vllm.composite.running import generated
from tests.integrations.vllm.engine import TRACED, run
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.texts import TEXTS

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

TOKENS = 16
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@pytest.mark.parametrize(
    ("format", "group", "agreement", "gap", "more"),
    # 8-bit activations round to another level at the least difference, and such a difference grows from layer to layer
    [
        ("w8a16", 128, 1.0, 0.01, {}),
        ("w8a8", 128, 0.85, 1.0, {}),
        ("w8a8", 128, 0.85, 1.0, TRACED),
        ("w4a16", 64, 0.95, 0.1, {}),
    ],
)
def test_tokens_are_those_of_the_low_bit_model(
    family: Family, format: Any, group: int, agreement: float, gap: float, more: dict[str, Any]
) -> None:
    """Any float checkpoint is quantised while it loads; n-gram drafts are verified in low bits."""
    config = {"quant_method": f"trimtab-{format}", "group": group}
    result = run(
        asked(),
        model=str(family.directories["large"]),
        quantization=f"trimtab-{format}",
        hf_overrides={"quantization_config": config},
        speculative_config=NGRAM,
        max_num_batched_tokens=64,
        **more,
    )
    assert result["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0
    low = trimtab.quantize_(copy.deepcopy(family.models["large"]), format, group=group)
    best, worst = judged(family, low, result["outputs"])
    assert best >= agreement
    assert worst < gap


def test_preempted_and_cached_texts_are_those_of_the_low_bit_model(family: Family) -> None:
    """All prompts twice, the second time from the prefix cache, four at a time in a KV cache for fewer."""
    result = run(
        [*asked(), *asked()],
        model=str(family.directories["large"]),
        quantization="trimtab-w8a16",
        speculative_config=NGRAM,
        max_num_batched_tokens=64,
        max_model_len=128,
        block_size=32,
        num_gpu_blocks_override=6,
        enable_prefix_caching=True,
    )
    assert result["metrics"]["vllm:num_preemptions"] > 0
    assert result["metrics"]["vllm:prefix_cache_hits"] > 0
    low = trimtab.quantize_(copy.deepcopy(family.models["large"]), "w8a16")
    for outputs in (result["outputs"][: len(TEXTS)], result["outputs"][len(TEXTS) :]):
        best, worst = judged(family, low, outputs)
        assert best == 1
        assert worst < 0.01


def test_the_second_runner_writes_the_same(family: Family) -> None:
    """With n-gram drafts; in Triton's interpreter, so a few tokens."""
    text = "The sea is blue. The sky is blue. The sea is"
    result = run(
        [{"prompt": text, "temperature": 0, "max_tokens": 6, "ignore_eos": True}],
        v2=True,
        model=str(family.directories["large"]),
        quantization="trimtab-w8a16",
        speculative_config=NGRAM,
        max_num_seqs=2,
        max_model_len=64,
        max_num_batched_tokens=64,
    )
    assert result["v2"]
    low = trimtab.quantize_(copy.deepcopy(family.models["large"]), "w8a16")
    (expected,) = generated(low, [family.tokenizer(text).input_ids], 6)
    assert result["outputs"][0][0]["tokens"] == expected


def asked() -> list[dict[str, Any]]:
    return [{"prompt": text, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True} for text in TEXTS]


def judged(family: Family, low: PreTrainedModel, outputs: list[Any]) -> tuple[float, float]:
    """Share of tokens that are the low-bit model's first in transformers, and how far behind it one is at most."""
    best, gaps = 0, []
    for text, samples in zip(TEXTS, outputs, strict=True):
        prompt, tokens = family.tokenizer(text).input_ids, samples[0]["tokens"]
        with torch.no_grad():
            logits = low(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
        behind = logits.amax(-1) - logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        best += int((behind < 0.01).sum())
        gaps.append(float(behind.max()))
    return best / (len(TEXTS) * TOKENS), max(gaps)


def test_a_group_that_does_not_fit_stops_the_start_with_its_reason(smollm2_directory: Path) -> None:
    with pytest.raises(AssertionError, match="group 128 does not divide the 576 input channels"):
        run([{"prompt": "a"}], model=str(smollm2_directory), quantization="trimtab-w4a16")
