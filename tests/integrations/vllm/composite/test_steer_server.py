"""STEER as a directory that the OpenAI-compatible server starts as it stands, against `trimtab.Steer`."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("vllm")

from torch import Tensor

from bench.family.tasks import items
from tests.integrations.vllm.composite.running import assert_same_or_tied, generated, log_probs
from tests.integrations.vllm.conftest import Server, Start
from tests.integrations.vllm.engine import ROOT, environment
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.negatives.reference import expected_tokens, negatives, scores
from trimtab import Steer
from trimtab.integrations.vllm.composed_directory import compose_steer

pytestmark = pytest.mark.slow

TOKENS = 24
GAMMA = 0.3
MIXED = (None, 0, 0.5, 1, None, 0, 0.2, 2.0, 0.3, 1, 0, 0.7)


@pytest.fixture(scope="module")
def running(server: Start, family: Family, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that was given the directory and nothing about what is in it."""
    root = tmp_path_factory.mktemp("steer")
    compose_steer(root / "steer", family.directories["record"], family.directories["base"], gamma=GAMMA)
    return server(root / "steer", "--max-num-seqs", "5", "--max-num-batched-tokens", "64")


@pytest.fixture(scope="module")
def address(running: Server) -> str:
    return running.url


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
    return asking(address, prompt, {} if gamma is None else {"trimtab_gamma": gamma})


def asking(address: str, prompt: list[int], xargs: dict[str, Any]) -> list[int]:
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body |= {"return_token_ids": True} | ({"vllm_xargs": xargs} if xargs else {})
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

    def exact(text: list[int], row: int) -> Tensor:
        expert, base = log_probs(family.models["record"], text), log_probs(family.models["base"], text)
        return ((1 + gammas[row]) * expert - gammas[row] * base).log_softmax(-1)

    print("ties", assert_same_or_tied(prompts, found, expected, exact))
    assert_same_or_tied(prompts, again, expected, exact)
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


def test_requests_with_negatives_of_their_own_are_the_reference(
    address: str, family: Family, prompts: list[list[int]]
) -> None:
    """As JSON brings them, six of eight with negatives, five at a time."""
    asked: list[dict[str, Any]] = [
        {"trimtab_negatives": negatives("The sea is", 0)},
        {},
        {"trimtab_negatives": negatives("The sea is", 0, 1, 2, 3), "trimtab_eta": 1},
        {"trimtab_negatives": negatives("The sea is", 3), "trimtab_eta": 1, "trimtab_balanced": True},
        {"trimtab_gamma": 0},
        {"trimtab_negatives": ["a"] * 8, "trimtab_eta": 0.2, "trimtab_gamma": 0, "trimtab_plausibility": 0.1},
        {"trimtab_negatives": negatives("x", 1), "trimtab_eta": 0.6, "trimtab_balanced": 1, "trimtab_gamma": 1.0},
        {"trimtab_negatives": negatives("x", 2, 3), "trimtab_eta": 0.4},
    ]
    prompts = prompts[4:12]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: asking(address, *pair), zip(prompts, asked, strict=True)))
    expected = [expected_tokens(family, prompt, TOKENS, each) for prompt, each in zip(prompts, asked, strict=True)]
    ties = assert_same_or_tied(
        prompts, found, expected, lambda text, row: scores(family, prompts[row], asked[row], text)
    )
    print("ties", ties)


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"trimtab_negatives": "a text"}, "trimtab_negatives is 'a text': give a list of at least one text"),
        ({"trimtab_negatives": []}, "trimtab_negatives is []: give a list"),
        ({"trimtab_negatives": ["a", 7]}, "trimtab_negatives[1] is 7: give a text"),
        ({"trimtab_negatives": ["a"] * 9}, "trimtab_negatives has 9 texts: give at most 8"),
        ({"trimtab_negatives": ["a " * 600]}, "trimtab_negatives[0] has "),
        ({"trimtab_negatives": ["a"], "trimtab_eta": -1}, "trimtab_eta is -1: give a number of at least 0"),
        ({"trimtab_negatives": ["a"], "trimtab_eta": [0.5]}, "trimtab_eta is [0.5]"),
        ({"trimtab_eta": 0.5}, "trimtab_eta is 0.5 and trimtab_negatives is missing"),
        ({"trimtab_negatives": ["a"], "trimtab_balanced": "yes"}, "trimtab_balanced is 'yes'"),
        ({"trimtab_plausibility": -0.1}, "trimtab_plausibility is -0.1: give a number from 0 to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_negatives_are_http_400_that_names_the_field(
    address: str, prompts: list[list[int]], xargs: dict[str, Any], message: str
) -> None:
    status, answer = post(address, "/v1/completions", {"prompt": prompts[0], "max_tokens": 4, "vllm_xargs": xargs})
    assert status == 400
    assert message in answer["error"]["message"]
    assert len(completion(address, prompts[0], 0.5)) == TOKENS


def test_a_chat_that_could_outgrow_the_context_is_told_which_max_tokens_would_fit(address: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    body |= {"vllm_xargs": {"trimtab_negatives": ["The sea is wide and blue. " * 60]}}
    status, answer = post(address, "/v1/chat/completions", body)
    assert status == 400
    fitting = int(answer["error"]["message"].partition("set max_tokens to ")[2].split()[0])
    assert post(address, "/v1/chat/completions", body | {"max_tokens": fitting + 1})[0] == 400
    assert post(address, "/v1/chat/completions", body | {"max_tokens": 4})[0] == 200


def test_the_example_runs(running: Server) -> None:
    pytest.importorskip("openai")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "vllm" / "steer.py"), running.url],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("eta = 1.0:")
    assert len(first.splitlines()) == len(second.splitlines()) == 5
    assert first.splitlines()[1].strip() == second.splitlines()[1].strip()  # nothing to go away from yet
    assert running.alive()
