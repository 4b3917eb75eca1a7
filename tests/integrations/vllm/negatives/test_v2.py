"""STEER's negative prompts on vLLM's Model Runner V2, its Triton kernels in the interpreter: a few short requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.integrations.vllm.composite.running import assert_same_or_tied
from tests.integrations.vllm.engine import run
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.negatives.reference import GAMMA, expected_tokens, negatives, scores
from trimtab.integrations.vllm.composed_directory import compose_steer

pytestmark = pytest.mark.slow

TOKENS = 6


def test_requests_together_are_the_reference(family: Family, tmp_path: Path) -> None:
    """Five for three seats, prompts read in pieces of 32 tokens."""
    compose_steer(tmp_path / "steer", family.directories["record"], family.directories["base"], gamma=GAMMA)
    texts = ["The sea is", "The capital of France is", "Sam had 12 marbles. " * 6, "def add(a, b):", "Once upon a time"]
    asked: list[dict[str, Any] | None] = [
        {"trimtab_negatives": negatives(texts[0], 0)},
        None,
        {"trimtab_negatives": negatives(texts[2], 1, 2), "trimtab_eta": 0.4, "trimtab_gamma": 0},
        {
            "trimtab_negatives": negatives(texts[3], 2, 0),
            "trimtab_eta": 1.0,
            "trimtab_balanced": True,
            "trimtab_plausibility": 0.1,
        },
        {"trimtab_gamma": 0.5},
    ]
    prompts = [family.tokenizer(text)["input_ids"] for text in texts]
    greedy = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    requests = [{"prompt": prompt, **greedy, "extra_args": each} for prompt, each in zip(prompts, asked, strict=True)]
    settings = {"trimtab": {"steer": {"negatives": 2, "negative_tokens": 160}}}
    options = {
        "max_model_len": 96, "max_num_seqs": 3, "max_num_batched_tokens": 32, "block_size": 32,
        "num_gpu_blocks_override": 4,
    }  # fmt: skip
    result = run(requests, v2=True, timeout=900, model=str(tmp_path / "steer"), additional_config=settings, **options)
    assert result["v2"]
    found = [samples[0]["tokens"] for samples in result["outputs"]]
    expected = [expected_tokens(family, prompt, TOKENS, each) for prompt, each in zip(prompts, asked, strict=True)]
    assert_same_or_tied(prompts, found, expected, lambda text, row: scores(family, prompts[row], asked[row], text))
