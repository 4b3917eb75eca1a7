"""A composite model in three tensor-parallel workers, held against `trimtab.LogitFusion`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from bench.family.tasks import items
from tests.integrations.vllm.composite.running import greedy, new_tokens, running_engine
from tests.integrations.vllm.composite.test_fusion_engine import assert_each_is_its_reference
from tests.integrations.vllm.family import Family
from trimtab.integrations.vllm.composed_directory import compose_fusion

WORKERS = 3
"""Divides the family's 9 heads and 3 key-value heads."""
ALPHAS = (None, 0, 0.7, 1.7, None, 0)
TOKENS = 12


@pytest.mark.slow
def test_split_members_are_the_reference(family: Family, tmp_path: Path) -> None:
    where = family.directories
    compose_fusion(tmp_path / "fusion", where["large"], where["base"], [where["extract"], where["record"]], alpha=None)
    texts = [items(("extract", "record")[number % 2], 1, "test", seed=number)[0].prompt for number in range(6)]
    prompts = [family.tokenizer(text)["input_ids"] for text in texts]
    arguments = [None if alpha is None else {"trimtab_alpha": alpha} for alpha in ALPHAS]
    with running_engine(
        tmp_path / "fusion",
        tensor_parallel_size=WORKERS,
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=48,
        block_size=32,
    ) as llm:
        found = new_tokens(greedy(llm, prompts, TOKENS, arguments))
    assert all(len(tokens) == TOKENS for tokens in found)
    assert_each_is_its_reference(family, prompts, ALPHAS, found)
