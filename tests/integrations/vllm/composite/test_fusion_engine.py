"""Logit fusion as a composite model in a real engine (Model Runner V1), held against `trimtab.LogitFusion`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from torch import Tensor

from bench.family.tasks import items
from tests.integrations.vllm.composite.running import (
    assert_same_or_tied,
    counter,
    generated,
    greedy,
    log_probs,
    new_tokens,
    running_engine,
)
from tests.integrations.vllm.family import Family
from trimtab import LogitFusion
from trimtab.decoding.fusion import fuse
from trimtab.integrations.vllm.composed_directory import compose_fusion

pytestmark = pytest.mark.slow

TOKENS = 24
BLOCKS = 12
"""Of 32 tokens: fewer than the requests in flight come to need, so that some are preempted."""
MIXED: tuple[Any, ...] = (None, 0, 0.5, 1, "dynamic", 1.7, 0, None, 0.25, "dynamic", 2, 0.75)


@pytest.fixture(scope="module")
def prompts(family: Family) -> list[list[int]]:
    """Twelve: one to four items of a task, answered but for the last."""
    texts = []
    for number in range(12):
        task = ("extract", "record")[number % 2]
        *shown, last = items(task, 1 + number // 3, "test", seed=number)
        texts.append("".join(f"{item.prompt}{item.target}\n\n" for item in shown) + last.prompt)
    return [family.tokenizer(text)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def engine(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Five seats for twelve requests, prompts read in pieces of 48 tokens."""
    where = family.directories
    composed = tmp_path_factory.mktemp("composed") / "fusion"
    compose_fusion(composed, where["large"], where["base"], [where["extract"], where["record"]], alpha=None)
    assert sum(path.lstat().st_size for path in composed.iterdir()) < 10_000  # links, not weights
    with running_engine(
        composed,
        max_model_len=256,
        max_num_seqs=5,
        max_num_batched_tokens=48,
        block_size=32,
        num_gpu_blocks_override=BLOCKS,
        enable_prefix_caching=True,
    ) as llm:
        yield llm


def reference(family: Family, alpha: Any) -> LogitFusion:
    experts = [family.models["extract"], family.models["record"]]
    return LogitFusion(family.models["base"], experts, "dynamic" if alpha is None else alpha)


def scores(family: Family, alpha: Any, text: list[int], row: int) -> Tensor:
    """float64 but for alpha, whose float32 search comes within 2e-5."""
    large, base, *experts = (log_probs(family.models[name], text) for name in ("large", "base", "extract", "record"))
    fixed = None if alpha in (None, "dynamic") else float(alpha)
    chosen = fuse(large[None].float(), base[None].float(), torch.stack(experts)[:, None].float(), alpha=fixed).alpha
    return (large + chosen[0].double() @ (torch.stack(experts) - base)).log_softmax(-1)


def assert_each_is_its_reference(
    family: Family, prompts: list[list[int]], alphas: Sequence[Any], found: list[list[int]]
) -> None:
    """Tokens `found` of each prompt are those of the same alpha in transformers, and of the large model alone at 0."""
    for alpha in dict.fromkeys(alphas):
        rows = [row for row, other in enumerate(alphas) if other == alpha]
        processor = None if alpha == 0 else reference(family, alpha)
        own = [prompts[row] for row in rows]
        expected = generated(family.models["large"], own, len(found[rows[0]]), processor)
        assert_same_or_tied(own, [found[row] for row in rows], expected, functools.partial(scores, family, alpha))


def test_all_requests_together_are_the_reference(engine: Any, family: Family, prompts: list[list[int]]) -> None:
    """Cold, then with part of the prompts in the prefix cache; both preempted for want of blocks."""
    assert max(map(len, prompts)) > 2 * 48
    expected = generated(family.models["large"], prompts, TOKENS, reference(family, None))
    ties = []
    for _ in range(2):
        found = new_tokens(greedy(engine, prompts, TOKENS, [None] * len(prompts)))
        ties.append(
            assert_same_or_tied(prompts, found, expected, functools.partial(scores, family, None)),
        )
    preempted = counter(engine, "vllm:num_preemptions")
    print("ties", ties, "preempted", preempted)
    assert preempted > 0


def test_a_prompt_in_the_prefix_cache_gives_the_same_text(engine: Any, prompts: list[list[int]]) -> None:
    longest = sorted(prompts, key=len)[-2:]
    first = greedy(engine, longest, TOKENS, [None] * 2)
    again = greedy(engine, longest, TOKENS, [None] * 2)
    assert min(output.num_cached_tokens for output in again) >= 32
    assert new_tokens(again) == new_tokens(first)


def test_each_request_has_its_own_alpha(engine: Any, family: Family, prompts: list[list[int]]) -> None:
    """All in flight together; those of 0 are the plain large model's. Each is also what the engine says of it alone."""
    arguments = [None if alpha is None else {"trimtab_alpha": alpha} for alpha in MIXED]
    found = new_tokens(greedy(engine, prompts, TOKENS, arguments))
    assert all(len(tokens) == TOKENS for tokens in found)
    assert_each_is_its_reference(family, prompts, MIXED, found)
    for row in (1, 3, 4, 5):
        alone = new_tokens(greedy(engine, [prompts[row]], TOKENS, [arguments[row]]))
        assert alone == [found[row]]


def test_prompt_logprobs_are_of_the_requests_own_strength(
    engine: Any, family: Family, prompts: list[list[int]]
) -> None:
    """Positions of the prompt are read beside other requests' sampled positions."""
    from vllm import SamplingParams

    alphas = (0.0, 1.0)
    params = [
        SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0, extra_args={"trimtab_alpha": alpha})
        for alpha in alphas
    ]
    prompt = prompts[0]
    outputs = engine.generate([{"prompt_token_ids": prompt}] * 2, params, use_tqdm=False)
    with torch.no_grad():
        large, base, *experts = (
            family.models[name](torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
            for name in ("large", "base", "extract", "record")
        )
    for alpha, output in zip(alphas, outputs, strict=True):
        expected = (large + alpha * sum(expert - base for expert in experts)).log_softmax(-1)
        wanted = expected.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        steps = zip(output.prompt_logprobs[1:], prompt[1:], strict=True)
        got = torch.tensor([step[token].logprob for step, token in steps])
        torch.testing.assert_close(got, wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trimtab_alpha": -1}, "trimtab_alpha is -1: give 'dynamic' or a number of at least 0"),
        ({"trimtab_alpha": "lots"}, "trimtab_alpha is 'lots'"),
        ({"trimtab_gamma": 0.5}, "trimtab_gamma is given, and this model is composed for fusion: use trimtab_alpha"),
    ],
    ids=str,
)
def test_a_bad_strength_fails_its_request_alone(
    engine: Any, prompts: list[list[int]], arguments: dict[str, Any], message: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        greedy(engine, prompts[:1], 4, [arguments])
    assert len(new_tokens(greedy(engine, prompts[:1], 4, [None]))[0]) == 4
