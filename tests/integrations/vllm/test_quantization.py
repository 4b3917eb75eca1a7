"""Low-bit linears in a real engine against the same ones in transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab
from tests.integrations.vllm.engine import TRACED, run
from tests.integrations.vllm.family import Family

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "One, two, three, four. One, two, three, four. One, two,",
    "List of planets: Mercury, Venus,",
    "Water boils at",
    "The sea is blue. The sky is blue. The sea is",
)
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
    greedy = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    result = run(
        [{"prompt": text, **greedy} for text in TEXTS],
        model=str(family.directories["large"]),
        quantization=f"trimtab-{format}",
        hf_overrides={"quantization_config": config},
        speculative_config=NGRAM,
        max_num_batched_tokens=64,
        **more,
    )
    assert result["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0
    low = trimtab.quantize_(copy.deepcopy(family.models["large"]), format, group=group)
    best, gaps = 0, []
    for text, samples in zip(TEXTS, result["outputs"], strict=True):
        prompt, tokens = family.tokenizer(text).input_ids, samples[0]["tokens"]
        with torch.no_grad():
            logits = low(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
        behind = logits.amax(-1) - logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        best += int((behind < 0.01).sum())
        gaps.append(float(behind.max()))
    assert best >= agreement * len(TEXTS) * TOKENS
    assert max(gaps) < gap


def test_a_group_that_does_not_fit_stops_the_start_with_its_reason(smollm2_directory: Path) -> None:
    with pytest.raises(AssertionError, match="group 128 does not divide the 576 input channels"):
        run([{"prompt": "a"}], model=str(smollm2_directory), quantization="trimtab-w4a16")
