"""Composites beyond Llama: Gemma 3 with sliding windows, and members of other families, shapes and precisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("vllm")

import torch

from bench.models import first_layers, perturbed
from tests.conftest import tiny
from tests.integrations.vllm.composite.int8_checkpoint import write_int8
from tests.integrations.vllm.composite.running import (
    assert_same_or_tied,
    generated,
    greedy,
    log_probs,
    new_tokens,
    running_engine,
)
from trimtab import LogitFusion, Steer
from trimtab.integrations.vllm.composed_directory import compose_fusion, compose_steer

if TYPE_CHECKING:
    from trimtab.integrations.transformers.loading import Loaded

pytestmark = pytest.mark.slow

SEATS: dict[str, Any] = {"max_num_seqs": 3, "max_num_batched_tokens": 64}


def test_gemma3_with_sliding_windows(gemma3: Loaded, tmp_path: Path) -> None:
    """The real model away from its first six layers, five of them with windows of 512; one prompt is longer."""
    expert, tokenizer = gemma3
    base = first_layers(expert, 6)
    expert.save_pretrained(tmp_path / "expert")
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "expert")
    compose_steer(tmp_path / "steer", tmp_path / "expert", tmp_path / "base", gamma=0.3)
    texts = [
        "The capital of France is",
        "def fibonacci(n):\n",
        "Once upon a time, a fox " + "ran over the hill and " * 120,
    ]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    assert len(prompts[2]) > 550
    gammas = (0.3, 0.0, 0.3)
    arguments = [None, {"trimtab_gamma": 0}, None]
    with running_engine(tmp_path / "steer", max_model_len=1024, **SEATS) as llm:
        found = new_tokens(greedy(llm, prompts, 12, arguments))
    expected = [
        generated(expert, [prompt], 12, Steer(base, gamma, 0.0) if gamma else None)[0]
        for prompt, gamma in zip(prompts, gammas, strict=True)
    ]

    def scores(text: list[int], row: int) -> torch.Tensor:
        return ((1 + gammas[row]) * log_probs(expert, text) - gammas[row] * log_probs(base, text)).log_softmax(-1)

    assert_same_or_tied(prompts, found, expected, scores)


def test_members_of_other_families_shapes_and_precisions(tmp_path: Path) -> None:
    """A random Qwen 3, pushed by Llamas of other sizes and a padded vocabulary, one of them in 8 bits.

    Of the layers of that one, two are left in full precision and named so in its checkpoint.
    """
    target = tiny("qwen3")
    base = first_layers(tiny("llama"), 1)
    expert = perturbed(base, 2, 0.5)
    base.resize_token_embeddings(103)
    target.save_pretrained(tmp_path / "target")
    base.save_pretrained(tmp_path / "base")
    kept = ("model.layers.0.mlp.down_proj", "model.layers.0.self_attn.o_proj")
    rounded = write_int8(expert, tmp_path / "expert", kept)
    compose_fusion(tmp_path / "fusion", tmp_path / "target", tmp_path / "base", [tmp_path / "expert"], alpha=None)
    prompts = [[5, 6, 7, 8, 9, 5, 6, 7], [11, 12, 11, 12, 11], [1, 20, 21], list(range(1, 90))]
    alphas: tuple[Any, ...] = (None, 0, 1.0, 0.5)
    arguments = [None if alpha is None else {"trimtab_alpha": alpha} for alpha in alphas]
    with running_engine(tmp_path / "fusion", max_model_len=128, skip_tokenizer_init=True, **SEATS) as llm:
        found = new_tokens(greedy(llm, prompts, 12, arguments))
    expected = [
        generated(target, [prompt], 12, fusion)[0]
        for prompt, fusion in zip(
            prompts,
            [
                None if alpha == 0 else LogitFusion(base, [rounded], "dynamic" if alpha is None else alpha)
                for alpha in alphas
            ],
            strict=True,
        )
    ]
    assert found == expected
