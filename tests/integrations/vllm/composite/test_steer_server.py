"""STEER's contrast as a directory that the OpenAI-compatible server starts as it stands, against `trimtab.Steer`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("vllm")

from torch import Tensor

from bench.family.tasks import items
from tests.integrations.vllm.composite.running import assert_same_or_tied, generated, log_probs
from tests.integrations.vllm.conftest import Start
from tests.integrations.vllm.family import Family
from trimtab import Steer
from trimtab.integrations.vllm.composed_directory import compose_steer

pytestmark = pytest.mark.slow

TOKENS = 24
GAMMA = 0.3
MIXED = (None, 0, 0.5, 1, None, 0, 0.2, 2.0, 0.3, 1, 0, 0.7)


@pytest.fixture(scope="module")
def address(server: Start, family: Family, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a server that was given the directory and nothing about what is in it."""
    root = tmp_path_factory.mktemp("steer")
    compose_steer(root / "steer", family.directories["record"], family.directories["base"], gamma=GAMMA)
    return server(root / "steer", "--max-num-seqs", "5", "--max-num-batched-tokens", "64").url


def post(address: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps({"model": "model", **body}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def completion(address: str, prompt: list[int], gamma: float | None) -> list[int]:
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body |= {"return_token_ids": True} | ({} if gamma is None else {"vllm_xargs": {"trimtab_gamma": gamma}})
    status, answer = post(address, "/v1/completions", body)
    assert status == 200, answer
    found: list[int] = answer["choices"][0]["token_ids"]
    return found


@pytest.fixture(scope="module")
def prompts(family: Family) -> list[list[int]]:
    texts = [
        *(items("record", 1, "test", seed=number)[0].prompt for number in range(6)),
        *(f"The {subject} is" for subject in ("sea", "capital of France", "first of the three", "reason for the rain")),
        "Once upon a time, in a small town by the river, there lived " * 6,
        "def add(a, b):",
    ]
    return [family.tokenizer(text)["input_ids"] for text in texts]


def test_requests_of_all_strengths_together_are_the_reference(
    address: str,
    family: Family,
    prompts: list[list[int]],
) -> None:
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda pair: completion(address, *pair), zip(prompts, MIXED, strict=True)))
        again = list(pool.map(lambda pair: completion(address, *pair), zip(prompts, MIXED, strict=True)))
    gammas = [GAMMA if gamma is None else gamma for gamma in MIXED]
    expected: list[list[int]] = [[]] * len(prompts)
    for gamma in set(gammas):
        rows = [row for row, other in enumerate(gammas) if other == gamma]
        processor = Steer(family.models["base"], gamma, 0.0) if gamma else None
        texts = generated(family.models["record"], [prompts[row] for row in rows], TOKENS, processor)
        for row, text in zip(rows, texts, strict=True):
            expected[row] = text

    def scores(text: list[int], row: int) -> Tensor:
        expert, base = log_probs(family.models["record"], text), log_probs(family.models["base"], text)
        return ((1 + gammas[row]) * expert - gammas[row] * base).log_softmax(-1)

    print("ties", assert_same_or_tied(prompts, found, expected, scores))
    assert_same_or_tied(prompts, again, expected, scores)
    plain = [row for row, gamma in enumerate(gammas) if gamma == 0]
    assert any(found[row] != expected[plain[0]] for row in range(12) if row not in plain)


@pytest.mark.parametrize("value", [-0.5, "much", "dynamic", [1.0]], ids=str)
def test_a_bad_value_is_http_400_that_names_the_field(address: str, prompts: list[list[int]], value: Any) -> None:
    body = {"prompt": prompts[0], "max_tokens": 4, "vllm_xargs": {"trimtab_gamma": value}}
    status, answer = post(address, "/v1/completions", body)
    assert status == 400
    assert f"trimtab_gamma is {value!r}: give a number of at least 0" in json.dumps(answer)
    assert len(completion(address, prompts[0], 0.5)) == TOKENS


def test_the_other_methods_field_is_http_400(address: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "vllm_xargs": {"trimtab_alpha": 1}, "max_tokens": 4}
    status, answer = post(address, "/v1/chat/completions", body)
    assert status == 400
    assert "trimtab_alpha is given, and this model is composed for steer: use trimtab_gamma" in json.dumps(answer)


def test_a_chat_streams_with_a_strength_of_its_own(address: str) -> None:
    body = {"model": "model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    body |= {"vllm_xargs": {"trimtab_gamma": 0.5}}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 4
