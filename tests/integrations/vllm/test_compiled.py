"""The methods' models traced by `torch.compile`, as vLLM has them unless it is told `--enforce-eager`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from bench.family.tasks import items
from tests.integrations.vllm.composite.running import assert_same_or_tied
from tests.integrations.vllm.composite.test_fusion_engine import assert_each_is_its_reference
from tests.integrations.vllm.engine import TRACED, run
from tests.integrations.vllm.entropy_adaptive import test_engine as entropy_adaptive
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.negatives.reference import expected_tokens, negatives, scores
from trimtab.integrations.vllm.composed_directory import compose_fusion, compose_steer

pytestmark = pytest.mark.slow

TOKENS = 16


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [items(("extract", "record")[row % 2], 1, "test", seed=row)[0].prompt for row in range(6)]


def written(prompts: Sequence[Any], arguments: Sequence[dict[str, Any] | None], **options: Any) -> list[list[int]]:
    greedy = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
    requests = [{"prompt": p, "extra_args": a, **greedy} for p, a in zip(prompts, arguments, strict=True)]
    return [samples[0]["tokens"] for samples in run(requests, **TRACED, **options)["outputs"]]


def test_fusion_is_the_reference(family: Family, texts: list[str], tmp_path: Path) -> None:
    where = family.directories
    composed = tmp_path / "fusion"
    compose_fusion(composed, where["large"], where["base"], [where["extract"], where["record"]], alpha=None)
    prompts = [family.tokenizer(text)["input_ids"] for text in texts]
    alphas = ("dynamic", 0, 0.5, 1.0, "dynamic", 0.5)
    found = written(prompts, [{"trimtab_alpha": alpha} for alpha in alphas], model=str(composed))
    assert_each_is_its_reference(family, prompts, alphas, found)


def test_steers_contrast_and_negatives_are_the_reference(family: Family, texts: list[str], tmp_path: Path) -> None:
    composed = tmp_path / "steer"
    compose_steer(composed, family.directories["record"], family.directories["base"], gamma=0.3)
    asked: list[dict[str, Any] | None] = [None, {"trimtab_gamma": 0}, {"trimtab_gamma": 1.0}]
    asked += [{"trimtab_negatives": negatives(text, 0, 1), "trimtab_eta": 1.0} for text in texts[3:]]
    prompts = [family.tokenizer(text)["input_ids"] for text in texts]
    reserve = {"trimtab": {"steer": {"negatives": 2, "negative_tokens": 192}}}
    found = written(prompts, asked, model=str(composed), block_size=32, additional_config=reserve)
    expected = [expected_tokens(family, prompt, TOKENS, each) for prompt, each in zip(prompts, asked, strict=True)]
    assert_same_or_tied(prompts, found, expected, lambda text, row: scores(family, prompts[row], asked[row], text))


def test_entropy_adaptive_texts_are_those_of_transformers(family: Family, texts: list[str]) -> None:
    thresholds = (0.0, 1.0, 2.0, 3.0, 2.0, 1.0)
    requests = [entropy_adaptive.greedy(*asked, TOKENS) for asked in zip(texts, thresholds, strict=True)]
    found = entropy_adaptive.written(entropy_adaptive.engine(family, requests, **TRACED))
    assert found == [
        entropy_adaptive.generated(family, *each, TOKENS)[0] for each in zip(texts, thresholds, strict=True)
    ]
