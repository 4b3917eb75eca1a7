"""Temperature selection in a real engine, on both model runners."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from tests.ability.prompts import PROMPTS, encoder_installed
from tests.integrations.vllm import engine
from trimtab.integrations.transformers.loading import Loaded

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, encoder_installed]

PROCESSOR = "trimtab.integrations.vllm.temperature:TemperatureProcessor"
TRANSLATE, BALLAD, _ = PROMPTS
CHOSEN = {"CT": 0.7, "MT": 0.4}
"""Of models up to 4B, as docs/temperature.md lists them."""
SAMPLES = 1000
LEVEL = 1e-4
"""Error rate of the statistical test: with a right implementation one seed in ten thousand fails."""


def asked(prompt: str, ability: str, own: float, **options: Any) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": own, "extra_args": {"trimtab_temperature": ability}, **options}


def pair(prompt: str, ability: str, own: float, expected: float, **options: Any) -> list[dict[str, Any]]:
    """A request that asks, and one that names by itself the temperature which the first must be sampled at."""
    options = {"seed": 11, "max_tokens": 5, "logprobs": 8} | options
    one = asked(prompt, ability, own, **options)
    one["extra_args"]["trimtab_trace_id"] = f"{prompt[:5]} {own}"
    return [one, {"prompt": prompt, "temperature": expected, **options}]


def entropies(lines: list[dict[str, Any]]) -> dict[int, float]:
    """Of the tokens of one request."""
    return {token: bits for line in lines for token, bits in enumerate(line["entropy_bits"], line["first_token"])}


PAIRS = [
    pair(TRANSLATE, "auto", 1.0, CHOSEN["MT"]),
    pair(BALLAD, "auto", 1.3, CHOSEN["CT"]),
    pair(BALLAD, "MT", 0.8, CHOSEN["MT"]),
    pair(BALLAD, "CT", 0.35, 0.35),  # the caller's is lower
    pair(BALLAD, "CT", 1.0, CHOSEN["CT"], top_k=20),
    pair(BALLAD, "CT", 1.7, CHOSEN["CT"], top_p=0.8),
    pair(BALLAD, "MT", 1.4, CHOSEN["MT"], min_p=0.05),
    pair(BALLAD, "CT", 1.2, CHOSEN["CT"], presence_penalty=1.5, repetition_penalty=1.3, logit_bias={198: -3.0}),
]
GREEDY = [asked(BALLAD, "CT", 0.0, max_tokens=5), {"prompt": BALLAD, "temperature": 0.0, "max_tokens": 5}]


def check_pairs(outputs: list[Any]) -> None:
    """Same tokens, same log-probabilities up to float32's rounding: top-k, top-p, min-p and penalties included."""
    for one, other in zip(outputs[::2], outputs[1::2], strict=True):
        assert one[0]["tokens"] == other[0]["tokens"]
        for found, expected in zip(one[0]["logprobs"] or [], other[0]["logprobs"] or [], strict=True):
            finite = {token: value for token, value in expected.items() if value > -1e30}
            assert {token: found[token] for token in finite} == pytest.approx(finite, abs=1e-4)


@pytest.fixture(scope="module")
def first_runner(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Any]]:
    """All requests in one engine, with what it traced; more of them than seats.

    No prompt comes in chunks: vLLM 0.32's V1 runner stops on a CPU where a request with a seed does.
    """
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    samples = asked(BALLAD, "CT", 1.2, n=SAMPLES, seed=5, max_tokens=1, ignore_eos=True)
    requests = [request for both in PAIRS for request in both] + [*GREEDY, samples]
    found = engine.run(
        requests, model=str(smollm2_directory), logits_processors=[PROCESSOR], logprobs_mode="processed_logprobs",
        max_num_seqs=64, max_num_batched_tokens=1024, additional_config={"trimtab": {"trace": {"path": str(path)}}},
    )  # fmt: skip
    assert not found["v2"]
    return found, [json.loads(line) for line in path.read_text().splitlines()]


def test_requests_are_sampled_as_if_they_had_named_the_temperature(first_runner: tuple[dict[str, Any], Any]) -> None:
    check_pairs(first_runner[0]["outputs"][:-1])


def test_each_request_that_asks_and_samples_is_traced(first_runner: tuple[dict[str, Any], Any]) -> None:
    found, lines = first_runner
    for index, (one, other) in enumerate(PAIRS):
        own = [line for line in lines if line["id"] == f"{one['prompt'][:5]} {one['temperature']}"]
        tokens = found["outputs"][2 * index][0]["tokens"]
        # several lines, if a slow machine paused for longer than a trace waits
        assert {line["temperature"] for line in own} == {other["temperature"]}
        assert sorted(entropies(own)) == list(range(len(tokens)))
    assert sum(line["id"] is None for line in lines) == SAMPLES
    assert not [line for line in lines if line["own_temperature"] == 0]


def test_the_first_token_is_drawn_from_the_softmax(first_runner: tuple[dict[str, Any], Any], smollm2: Loaded) -> None:
    """Chi-square against transformers' logits; the caller's own temperature, as a control, must be told apart."""
    model, tokenizer = smollm2
    drawn = torch.tensor([sample["tokens"][0] for sample in first_runner[0]["outputs"][-1]])
    with torch.no_grad():
        logits = model(tokenizer(BALLAD, return_tensors="pt")["input_ids"]).logits[0, -1].double()

    def p_value(temperature: float) -> float:
        expected = SAMPLES * (logits / temperature).softmax(-1)
        counts = torch.bincount(drawn, minlength=len(logits)).double()
        common = expected >= 5
        groups = [torch.cat([of[common], of[~common].sum()[None]]) for of in (counts, expected)]
        return float(chisquare(groups[0].numpy(), groups[1].numpy()).pvalue)

    assert len(drawn) == SAMPLES
    assert p_value(CHOSEN["CT"]) > LEVEL
    assert p_value(1.2) < 1e-12


def test_the_second_runner_samples_alike_and_traces_the_entropy(
    tmp_path: Path, smollm2_directory: Path, smollm2: Loaded
) -> None:
    """With prompts in chunks, and drafts from the prompt: verification rows are scaled like any other."""
    pytest.importorskip("triton")
    model, tokenizer = smollm2
    path = tmp_path / "trace.jsonl"
    repeated = "A A B A A B A A B A A"
    pairs = [PAIRS[0], pair(repeated, "CT", 1.1, CHOSEN["CT"], max_tokens=4)]
    requests = [request for both in pairs for request in both] + GREEDY
    found = engine.run(
        requests, v2=True, model=str(smollm2_directory), logits_processors=[PROCESSOR], max_num_batched_tokens=32,
        logprobs_mode="processed_logprobs", additional_config={"trimtab": {"trace": {"path": str(path)}}},
        speculative_config={"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}, scrape=True,
    )  # fmt: skip
    assert found["v2"]
    counts = {ability: found["scraped"][f"trimtab:temperature_count {ability}"] for ability in ("MT", "CT")}
    assert counts == {"MT": 1, "CT": 1}  # of each pair one request asks, the other one names the temperature
    check_pairs(found["outputs"])
    assert found["metrics"].get("vllm:spec_decode_num_draft_tokens", 0) > 0
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if line["ability"] == "MT"]
    assert {line["temperature"] for line in lines} == {CHOSEN["MT"]}
    bits = entropies(lines)
    # at temperature 1, of the model's own distribution, at every token that was kept
    prompt, tokens = tokenizer(TRANSLATE)["input_ids"], found["outputs"][0][0]["tokens"]
    with torch.no_grad():
        rows = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].double()
    expected = (torch.special.entr(rows.softmax(-1)).sum(-1) / math.log(2)).tolist()
    assert [bits[position] for position in range(len(tokens))] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": {"modell": "7B"}}, "has 'modell': give of"),
        ({"trace": {"path": "/nowhere/at/all.jsonl"}}, "which cannot be written"),
        ({"temperature": {"rule": "best"}}, "rule is 'best'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(smollm2_directory: Path, given: dict[str, Any], message: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from trimtab.errors import InputError
    from trimtab.integrations.vllm.temperature import TemperatureProcessor

    config = EngineArgs(
        model=str(smollm2_directory), dtype="float32", enforce_eager=True, max_model_len=512,
        additional_config={"trimtab": given},
    ).create_engine_config()  # fmt: skip
    with pytest.raises(InputError, match=message):
        TemperatureProcessor(config, torch.device("cpu"), False)


def test_the_models_size_is_read_from_its_configuration(smollm2_directory: Path, smollm2: Loaded) -> None:
    from vllm.config import ModelConfig

    from trimtab.integrations.vllm.model_size import parameter_count

    assert parameter_count(ModelConfig(model=str(smollm2_directory))) == smollm2.model.num_parameters()
