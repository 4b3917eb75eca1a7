"""A composite model of STEER and what V1 tells it, without an engine: tiny random models against transformers.

What an engine adds is its scheduler; here a small one reads prompts in pieces, preempts and resumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.integrations.vllm.composite.running import log_probs
from tests.integrations.vllm.negatives.loading import loaded_by_vllm
from trimtab.integrations.vllm.composed_directory import compose_steer

GAMMA = 0.25
ASKED: list[dict[str, Any] | None] = [
    {"trimtab_negatives": ["The sea is wide.", "A bird, and then many more birds in a long row. " * 3]},
    None,
    {"trimtab_negatives": ["Sea"], "trimtab_eta": 1.5, "trimtab_balanced": True, "trimtab_plausibility": 0.3},
    {"trimtab_gamma": 0},
]


@pytest.fixture(scope="module")
def models(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Expert, base, tokenizer, and vLLM's configuration and composite of them."""
    from trimtab.integrations.vllm import plugin

    plugin.register()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    plain = []
    for seed, layers in enumerate((3, 2)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=layers, head_dim=32,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1,
        )  # fmt: skip
        plain.append(LlamaForCausalLM(config).eval())
    root = tmp_path_factory.mktemp("models")
    for name, model in zip(("expert", "base"), plain, strict=True):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    compose_steer(root / "steer", root / "expert", root / "base", gamma=GAMMA)
    settings = {"trimtab": {"steer": {"negatives": 2, "negative_tokens": 128}}}
    with loaded_by_vllm(root / "steer", additional_config=settings) as (config, composite):
        yield SimpleNamespace(expert=plain[0], base=plain[1], tokenizer=tokenizer, config=config, composite=composite)


def expected(models: Any, asked: dict[str, Any] | None, prompt: list[int], new: list[int]) -> torch.Tensor:
    """`[vocab]` float64."""
    given = asked or {}
    gamma, texts = given.get("trimtab_gamma", GAMMA), given.get("trimtab_negatives", [])
    eta = given.get("trimtab_eta", 0.6) if texts else 0.0
    expert, base = (log_probs(model, prompt + new) for model in (models.expert, models.base))
    found = (1 + gamma + (eta if given.get("trimtab_balanced") else 0)) * expert - gamma * base
    for text in texts:
        found = found - eta / len(texts) * log_probs(models.expert, models.tokenizer(text)["input_ids"] + new)
    beta = given.get("trimtab_plausibility", 0.0)
    return found.masked_fill(expert.exp() < beta * expert.exp().max(), -torch.inf).log_softmax(-1)


@torch.inference_mode()
def test_every_token_of_four_requests(models: Any) -> None:
    """Read in pieces of four tokens; the third request is preempted after four tokens of its text."""
    from vllm.v1.sample.logits_processor import BatchUpdate

    from trimtab.integrations.vllm.negatives.cache import NegativeCache
    from trimtab.integrations.vllm.negatives.sequences import BLOCK, Feed, NegativeSequence
    from trimtab.integrations.vllm.per_request import GammaV1

    processor = GammaV1(models.config, torch.device("cpu"), False)
    # its passes are what a runner's are
    runner = NegativeCache(models.config, models.composite, 16, torch.device("cpu"))
    prompts = [
        models.tokenizer(text)["input_ids"] for text in ("The sea", "def add(a, b):", "Once upon a time in", "I")
    ]
    new: list[list[int]] = [[] for _ in prompts]
    texts = [NegativeSequence(prompt, blocks=list(range(4 * row, 4 * row + 4))) for row, prompt in enumerate(prompts)]
    assert all(len(text.prompt) + 12 < 4 * BLOCK for text in texts)

    def add(row: int) -> tuple[int, Any, list[int], list[int]]:
        return row, SimpleNamespace(extra_args=ASKED[row]), prompts[row], new[row]

    processor.update_state(BatchUpdate(4, [], [add(row) for row in range(4)], []))
    checked = 0
    for step in range(14):
        if step == 6:
            processor.update_state(BatchUpdate(4, [2], [], []))
            processor.update_state(BatchUpdate(4, [], [add(2)], []))
            texts[2].kept = 3
        feeds, ids = [], []
        for row, text in enumerate(texts):
            whole = prompts[row] + new[row]
            end = min(len(whole), text.kept + 4)
            feeds.append(Feed(text, row, row, text.kept, end, True))
            ids += whole[text.kept : end]
            text.kept = end
        hidden = runner.read(feeds, torch.tensor(ids, dtype=torch.int32))
        ends = torch.tensor([feed.end - feed.start for feed in feeds]).cumsum(0) - 1
        scores = models.composite.compute_logits(hidden[ends])
        for row, text in enumerate(texts):
            if text.kept < len(prompts[row]) + len(new[row]):
                continue
            wanted = expected(models, ASKED[row], prompts[row], new[row])
            got = scores[row].double().log_softmax(-1)
            assert torch.equal(got.isinf(), wanted.isinf())
            torch.testing.assert_close(got, wanted, atol=5e-4, rtol=0)
            new[row].append(int(wanted.argmax()))
            checked += 1
    assert checked > 45
    pool = models.config.model_config.trimtab_rows.pool.blocks
    assert pool.used > 0
    processor.update_state(BatchUpdate(4, [0, 1, 2, 3], [], []))
    assert pool.used == 0
