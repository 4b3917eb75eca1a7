"""STEER's negative prompts in a real engine (Model Runner V1), held against `trimtab.Steer`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from bench.family.tasks import items
from tests.integrations.vllm.composite.running import (
    assert_same_or_tied,
    counter,
    greedy,
    new_tokens,
    running_engine,
)
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.negatives.reference import GAMMA, expected_tokens, negatives, scores
from trimtab.integrations.vllm.composed_directory import compose_steer

pytestmark = pytest.mark.slow

TOKENS = 24
KV_BLOCKS = 7
"""Of 32 tokens, for the prompts: fewer than the requests in flight come to need, so that some are preempted."""
NEGATIVE_TOKENS = 320
"""Fewer than those in flight have: what is kept of some makes room for others in every step."""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Twelve; some longer than the 48 tokens that are read in a step."""
    subjects = ("sea", "capital of France", "first of the three", "reason for the rain")
    found = [items("record", 1, "test", seed=number)[0].prompt for number in range(6)]
    found += [f"The {subject} is" for subject in subjects]
    return [*found, "Once upon a time, in a small town by the river, there lived " * 6, "def add(a, b):"]


@pytest.fixture(scope="module")
def prompts(family: Family, texts: list[str]) -> list[list[int]]:
    return [family.tokenizer(text)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def mixed(texts: list[str]) -> list[dict[str, Any] | None]:
    """What each of the twelve asks for; some for nothing."""
    asked: list[tuple[tuple[int, ...], dict[str, Any]] | None] = [
        ((0,), {}),
        None,
        ((0, 1, 2), {"trimtab_eta": 0.6, "trimtab_gamma": 0}),
        ((3,), {"trimtab_eta": 1.0, "trimtab_balanced": True, "trimtab_plausibility": 0.1}),
        ((), {"trimtab_gamma": 0.5}),
        ((1, 3), {"trimtab_eta": 0.2, "trimtab_plausibility": 0.05}),
        ((2,), {"trimtab_eta": 0.0}),
        ((1, 2), {"trimtab_eta": 0.4, "trimtab_gamma": 1.0}),
        None,
        ((0, 3, 1), {"trimtab_eta": 1.5, "trimtab_balanced": True, "trimtab_plausibility": 0.1}),
        ((0,), {"trimtab_eta": 0.6, "trimtab_balanced": True}),
        ((), {"trimtab_plausibility": 0.2, "trimtab_gamma": 0}),
    ]
    return [
        each and (each[1] | ({"trimtab_negatives": negatives(text, *each[0])} if each[0] else {}))
        for each, text in zip(asked, texts, strict=True)
    ]


@pytest.fixture(scope="module")
def expected(family: Family, prompts: list[list[int]], mixed: list[dict[str, Any] | None]) -> list[list[int]]:
    return [expected_tokens(family, prompt, TOKENS, asked) for prompt, asked in zip(prompts, mixed, strict=True)]


@pytest.fixture(scope="module")
def engine(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Five seats for twelve requests, prompts read in pieces of 48 tokens, everything short of memory."""
    composed = tmp_path_factory.mktemp("composed") / "steer"
    compose_steer(composed, family.directories["record"], family.directories["base"], gamma=GAMMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # for `held`
        with running_engine(
            composed,
            max_model_len=192,
            max_num_seqs=5,
            max_num_batched_tokens=48,
            block_size=32,
            num_gpu_blocks_override=KV_BLOCKS,
            enable_prefix_caching=True,
            additional_config={"trimtab": {"steer": {"negatives": 3, "negative_tokens": NEGATIVE_TOKENS}}},
        ) as llm:
            yield llm


def _pool(model: Any) -> tuple[int, int, int]:
    from trimtab.integrations.vllm.per_request import ROWS

    rows = getattr(model._vllm_config.model_config, ROWS)
    return rows.pool.blocks.used, rows.pool.blocks.size, 0 if model._branch is None else model._branch.forwarded


def held(engine: Any) -> tuple[int, int, int]:
    """Blocks of negatives in use and in all, and tokens of negatives read so far."""
    found: tuple[int, int, int] = engine.apply_model(_pool)[0]
    return found


def test_all_requests_together_are_the_reference(
    engine: Any, family: Family, prompts: list[list[int]], mixed: Any, expected: list[list[int]]
) -> None:
    """Cold, then with prompts in the prefix cache; both preempted, and with negatives that make room for each other."""
    ties = []
    for _ in range(2):
        before = held(engine)[2]
        found = new_tokens(greedy(engine, prompts, TOKENS, mixed))
        read = held(engine)[2] - before
        ties.append(
            assert_same_or_tied(
                prompts,
                found,
                expected,
                lambda text, row: scores(family, prompts[row], mixed[row], text),
            )
        )
    preempted = counter(engine, "vllm:num_preemptions")
    once = sum(
        len(family.tokenizer(text)["input_ids"]) + TOKENS - 1
        for asked in mixed
        if asked and asked.get("trimtab_eta") != 0
        for text in asked.get("trimtab_negatives", ())
    )
    print("ties", ties, "preempted", preempted, "negative tokens read", read, "of", once)
    assert preempted > 0
    assert read > once


def test_the_memory_of_finished_and_aborted_requests_is_free(engine: Any, prompts: list[list[int]], mixed: Any) -> None:
    from vllm import SamplingParams

    greedy(engine, prompts[:5], 2, mixed[:5])
    greedy(engine, prompts[1:2], 2, [None])
    assert held(engine)[0] == 0
    core = engine.llm_engine
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=mixed[2])
    for name in ("stays", "goes"):
        core.add_request(name, {"prompt_token_ids": prompts[2]}, params)
    for _ in range(6):
        core.step()
    both = held(engine)[0]
    core.abort_request(["goes"])
    for _ in range(2):
        core.step()
    assert 0 < held(engine)[0] < both
    while core.has_unfinished_requests():
        core.step()
    greedy(engine, prompts[1:2], 2, [None])
    assert held(engine)[0] == 0


def test_a_text_does_not_depend_on_its_neighbours(
    engine: Any, prompts: list[list[int]], mixed: Any, expected: list[list[int]]
) -> None:
    together = new_tokens(greedy(engine, prompts, TOKENS, mixed))
    for row in (2, 3, 7, 8):
        assert new_tokens(greedy(engine, [prompts[row]], TOKENS, [mixed[row]])) == [together[row]]


def test_requests_without_negatives_are_bit_for_bit_those_of_a_batch_without_any(
    engine: Any, prompts: list[list[int]], mixed: Any
) -> None:
    """Same batch, same shapes: only what two of the five ask for differs."""
    from vllm import SamplingParams

    def logprobs(arguments: list[Any]) -> list[list[float]]:
        params = [
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0, extra_args=asked)
            for asked in arguments
        ]
        # short ones: read in one step, and nobody is preempted
        inputs = [{"prompt_token_ids": prompts[row][:8]} for row in range(4)]
        outputs = engine.generate(inputs, params, use_tqdm=False)
        return [[next(iter(step.values())).logprob for step in output.outputs[0].logprobs] for output in outputs]

    engine.reset_prefix_cache()
    plain = logprobs([None, None, {"trimtab_gamma": 0}, None])
    engine.reset_prefix_cache()
    beside = logprobs([None, mixed[9], {"trimtab_gamma": 0}, mixed[2]])
    assert (beside[0], beside[2]) == (plain[0], plain[2])
    assert beside[1] != plain[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trimtab_negatives": "a text"}, "trimtab_negatives is 'a text': give a list of at least one text"),
        ({"trimtab_negatives": ["a"] * 4}, "trimtab_negatives has 4 texts: give at most 3"),
        ({"trimtab_negatives": ["a " * 190]}, r"trimtab_negatives\[0\] has \d+ tokens"),
        ({"trimtab_negatives": ["a " * 120] * 3}, r"trimtab_negatives has \d+ tokens, .*`negative_tokens` is 320"),
        ({"trimtab_eta": 0.5}, "trimtab_eta is 0.5 and trimtab_negatives is missing"),
        ({"trimtab_negatives": ["a"], "trimtab_eta": "much"}, "trimtab_eta is 'much'"),
        ({"trimtab_plausibility": 2}, "trimtab_plausibility is 2: give a number from 0 to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_kept_fails_its_request_alone(
    engine: Any, prompts: list[list[int]], arguments: dict[str, Any], message: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        greedy(engine, prompts[:1], 4, [arguments])
    assert len(new_tokens(greedy(engine, prompts[:1], 4, [None]))[0]) == 4
