"""Composite models on vLLM's Model Runner V2, its Triton kernels in the interpreter: a few short requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from bench.family.tasks import items
from tests.integrations.vllm.composite.running import assert_same_or_tied, generated
from tests.integrations.vllm.composite.test_fusion_engine import reference, scores
from tests.integrations.vllm.engine import run
from tests.integrations.vllm.family import Family
from trimtab.integrations.vllm.composed_directory import compose_fusion

pytestmark = pytest.mark.slow

TOKENS = 6
ALPHAS: tuple[Any, ...] = (None, 0, 1.0, "dynamic", 0.5)
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}


@pytest.mark.parametrize("drafts", [None, NGRAM])
def test_requests_together_are_the_reference(family: Family, tmp_path: Path, drafts: dict[str, Any] | None) -> None:
    """Five requests for three seats, prompts read in pieces of 32 tokens."""
    where = family.directories
    compose_fusion(tmp_path / "fusion", where["large"], where["base"], [where["extract"], where["record"]], alpha=None)
    texts = [items(("extract", "record")[row % 2], 1, "test", seed=row)[0].prompt for row in range(len(ALPHAS))]
    prompts = [family.tokenizer(text)["input_ids"] for text in texts]
    greedy = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    requests = [
        {"prompt": prompt, **greedy, "extra_args": None if alpha is None else {"trimtab_alpha": alpha}}
        for prompt, alpha in zip(prompts, ALPHAS, strict=True)
    ]
    options: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 3, "max_num_batched_tokens": 32}
    if drafts is not None:
        options["speculative_config"] = drafts
    result = run(requests, v2=True, timeout=900, scrape=True, model=str(tmp_path / "fusion"), **options)
    assert result["v2"]
    chosen = ALPHAS.count("dynamic") + ALPHAS.count(None)
    for expert in ("trimtab_expert_a", "trimtab_expert_b"):
        scored = result["scraped"][f"trimtab:fusion_alpha_count {expert}"]
        assert scored == chosen * TOKENS if drafts is None else scored > chosen * TOKENS  # rejected drafts were scored
    found = [samples[0]["tokens"] for samples in result["outputs"]]
    expected = [
        generated(family.models["large"], [prompt], TOKENS, None if alpha == 0 else reference(family, alpha))[0]
        for prompt, alpha in zip(prompts, ALPHAS, strict=True)
    ]
    assert_same_or_tied(prompts, found, expected, lambda text, row: scores(family, ALPHAS[row], text, row))
