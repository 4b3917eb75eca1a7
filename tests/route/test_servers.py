"""The command `trimtab route` before two real servers of vLLM: SmolLM2-135M and the small base of its family."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import trimtab
from tests.integrations.vllm import conftest as vllm_servers
from tests.integrations.vllm.conftest import Server
from tests.integrations.vllm.engine import ROOT, environment
from tests.integrations.vllm.family import Family, write_family
from trimtab.decoding.top_entropy import entropy_range

pytest.importorskip("vllm")
httpx = pytest.importorskip("httpx")
pytestmark = pytest.mark.slow

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Q: What is 12 + 30?\nA:",
    "Dear Sir or Madam,",
    "Water boils at",
)
THRESHOLDS = (2.0, 3.0, 4.5)
TOKENS, WINDOW, TOP = 20, 2, 20
TIE = 1e-3
"""Two logits, or a mean and its threshold, so near (in float64) that float32 may order them either way."""


@dataclass
class Pair:
    """Both servers and the models that they serve."""

    family: Family
    small: Server
    large: Server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    family = write_family(tmp_path_factory.mktemp("family"), ("large", "base"))

    def start(name: Any) -> Server:
        log = tmp_path_factory.mktemp(name) / "log"
        return vllm_servers.start_server(str(family.directories[name]), ("--block-size", "32"), {}, log)

    # one after the other: engines that start together may choose the same port for themselves
    with ExitStack() as stack:
        running = {}
        for name in ("base", "large"):
            running[name] = start(name)
            stack.callback(running[name].stop)
        yield Pair(family, running["base"], running["large"])


@contextmanager
def routing(servers: Pair, *arguments: str) -> Iterator[str]:
    """The command, on a free port; gives its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "trimtab.cli", "route", "--small", servers.small.url, "--large", servers.large.url]
    command += ["--threshold", "3", "--window", str(WINDOW), "--port", str(port), *arguments]
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    url, late = f"http://127.0.0.1:{port}", time.monotonic() + 200
    try:
        while True:
            assert process.poll() is None, process.communicate()[0].decode()[-3000:]
            assert time.monotonic() < late
            try:
                if httpx.get(url + "/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=60)[0].decode()
        assert "Traceback" not in output, output[-3000:]


@pytest.fixture(scope="module")
def url(servers: Pair) -> Iterator[str]:
    with routing(servers, "--top-logprobs", str(TOP)) as found:
        yield found


def post(url: str, path: str = "/v1/completions", **body: Any) -> Any:
    answer = httpx.post(url + path, json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def greedy(text: str, threshold: float = 3.0, **xargs: Any) -> dict[str, Any]:
    return {
        "prompt": text,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "vllm_xargs": {"trimtab_threshold": threshold, **xargs},
    }


def running(server: Server) -> float:
    found = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", server.get("/metrics"), re.MULTILINE)
    assert found is not None
    return float(found[1])


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.2)


class Replay:
    """Reads a text once with both models, in float64, and takes the turns over it that the likeliest TOP tokens give.

    Attributes:
        large: tokens of the large model.
        wrong: places whose token is not that of whoever has the turn.
        differs: whether the exact entropy would have decided otherwise somewhere, or a decision was a tie.
    """

    def __init__(self, family: Family, text: str, tokens: list[int], threshold: float) -> None:
        prompt = family.tokenizer(text).input_ids
        with torch.no_grad():
            scores = {
                large: family.models[name](torch.tensor([[*prompt, *tokens]]))
                .logits[0, len(prompt) - 1 : -1]
                .double()
                .log_softmax(-1)
                for large, name in ((False, "base"), (True, "large"))
            }
        self.large, self.wrong, self.differs = 0, list[int](), False
        turn, stay = False, 0
        estimates: list[float] = []
        exact: list[float] = []
        for place, token in enumerate(tokens):
            log_p = scores[turn][place]
            self.large += turn
            if log_p[token] < log_p.max() - TIE:
                self.wrong.append(place)
            exact.append(float(-(log_p.exp() * log_p).sum()) / 0.6931471805599453)
            estimates.append(entropy_range(log_p.topk(TOP).values.tolist(), len(log_p)).estimate)
            mean, exact_mean = (sum(bits[-WINDOW:]) / len(bits[-WINDOW:]) for bits in (estimates, exact))
            stay += 1
            if stay >= WINDOW:
                self.differs |= (mean > threshold) != (exact_mean > threshold) or abs(mean - threshold) < TIE
                if (mean > threshold) != turn:
                    turn, stay = not turn, 0


def generated(family: Family, text: str, threshold: float) -> list[int]:
    """trimtab's own loop in transformers, with the exact entropy."""
    ids = family.tokenizer(text, return_tensors="pt").input_ids
    output = family.models["large"].generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=trimtab.EntropyAdaptive(family.models["base"], threshold, window=WINDOW),
        max_new_tokens=TOKENS,
        eos_token_id=-1,  # as ignore_eos
        do_sample=False,
    )
    return list(output[0, ids.shape[1] :].tolist())


def test_texts_of_many_requests_are_those_of_transformers(servers: Pair, url: str) -> None:
    """Twelve requests in flight; where the exact entropy decides as the estimate does, the text is the exact gate's."""
    asked = [(text, THRESHOLDS[(index + turn) % 3]) for turn in range(2) for index, text in enumerate(TEXTS)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: post(url, **greedy(*one)), asked))
    same = switches = 0
    for (text, threshold), answer in zip(asked, answers, strict=True):
        tokens = answer["choices"][0]["token_ids"]
        replay = Replay(servers.family, text, tokens, threshold)
        assert replay.wrong == [], (text, threshold)
        assert answer["trimtab"]["tokens"] == {"small": TOKENS - replay.large, "large": replay.large}
        assert answer["choices"][0]["text"] == servers.family.tokenizer.decode(tokens, skip_special_tokens=True)
        switches += answer["trimtab"]["switches"]
        if not replay.differs:
            assert tokens == generated(servers.family, text, threshold), (text, threshold)
            same += 1
    assert same >= len(asked) // 2
    assert switches >= len(asked)


def test_either_model_alone_writes_its_servers_own_text(servers: Pair, url: str) -> None:
    for server, threshold, start in ((servers.large, 0.0, "large"), (servers.small, 1e9, "small")):
        for text in TEXTS[:2]:
            asked = greedy(text, threshold, trimtab_start=start)
            own = post(server.url, **{name: value for name, value in asked.items() if name != "vllm_xargs"})
            answer = post(url, **asked)
            assert answer["choices"][0]["token_ids"] == own["choices"][0]["token_ids"]
            assert answer["choices"][0]["text"] == own["choices"][0]["text"]
            assert answer["usage"] == {name: own["usage"][name] for name in answer["usage"]}
            assert answer["trimtab"]["switches"] == 0


def test_a_chat_and_a_sampled_request_are_the_servers_own(servers: Pair, url: str) -> None:
    xargs = {"vllm_xargs": {"trimtab_threshold": 0.0, "trimtab_start": "large"}}
    chat = {"messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 8, "temperature": 0}
    sampled = {"prompt": TEXTS[0], "max_tokens": 8, "temperature": 0.9, "top_p": 0.95, "seed": 11}
    stopped = {"prompt": TEXTS[0], "max_tokens": 12, "temperature": 0, "stop": [" of"]}
    for path, asked in (("/v1/chat/completions", chat), ("/v1/completions", sampled), ("/v1/completions", stopped)):
        own = post(servers.large.url, path, **asked)["choices"][0]
        answer = post(url, path, **asked, **xargs)["choices"][0]
        for name in ("text", "message", "finish_reason", "stop_reason"):
            expected = own.get(name)
            if name == "message":
                expected = expected and {"role": "assistant", "content": expected["content"]}
            assert answer.get(name) == expected, (path, name)


def test_a_sampled_text_is_the_same_with_the_same_seed(url: str) -> None:
    asked = greedy(TEXTS[1]) | {"temperature": 1.0, "seed": 5}
    first, second = post(url, **asked), post(url, **asked)
    assert first["choices"] == second["choices"]
    assert first["trimtab"]["switches"] > 0
    assert post(url, **asked | {"seed": 6})["choices"] != first["choices"]


def test_the_openai_client_streams_what_it_gets_whole(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
    asked = {
        "model": client.models.list().data[0].id,
        "messages": [{"role": "user", "content": "Tell me about the sea."}],
        "max_tokens": 12,
        "temperature": 0,
        "extra_body": {"vllm_xargs": {"trimtab_threshold": 2.0, "trimtab_window": 1}},
    }
    whole = client.chat.completions.create(**asked)
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert parts[-2].trimtab == whole.trimtab
    assert whole.trimtab["switches"] > 0


def test_a_servers_refusal_has_its_status_and_its_message(url: str) -> None:
    for stream in (False, True):
        body = {"prompt": "a", "temperature": -1, "stream": stream}
        answer = httpx.post(url + "/v1/completions", json=body, timeout=60)
        assert answer.status_code == 400
        assert "temperature" in answer.json()["error"]["message"]
    answer = httpx.post(url + "/v1/completions", json=greedy("a", -1.0), timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "trimtab_threshold")
    assert httpx.get(url + "/health", timeout=30).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_leaves_nothing_running(servers: Pair, url: str, stream: bool) -> None:
    asked = greedy(TEXTS[1], 1e9) | {"max_tokens": 450, "stream": stream}
    client = http.client.HTTPConnection(url.removeprefix("http://"))
    client.request("POST", "/v1/completions", json.dumps(asked))
    wait_for(lambda: running(servers.small) == 1)
    client.close()
    wait_for(lambda: running(servers.small) == 0, 20)
    page = httpx.get(url + "/metrics", timeout=30).text
    assert re.search(r'^trimtab:route_requests_total\{outcome="cancelled"\} [12]', page, re.MULTILINE)


def test_log_probabilities_that_a_server_does_not_give_are_one_line(servers: Pair) -> None:
    command = ["-m", "trimtab.cli", "route", "--small", servers.small.url, "--large", servers.large.url]
    done = subprocess.run(
        [sys.executable, *command, "--threshold", "3", "--top-logprobs", "21"],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--max-logprobs" in done.stderr or "21" in done.stderr


def test_a_lost_server(servers: Pair, url: str) -> None:
    """Killed in the middle of an answer. Last, since it does not come back."""
    with routing(servers, "--on-lost", "other", "--top-logprobs", str(TOP)) as lenient:
        asked = greedy(TEXTS[1], 0.0, trimtab_start="large") | {"max_tokens": 120}
        with ThreadPoolExecutor(2) as pool:
            answers = [
                pool.submit(httpx.post, one + "/v1/completions", json=asked, timeout=300) for one in (url, lenient)
            ]
            wait_for(lambda: running(servers.large) == 2)
            os.killpg(servers.large.process.pid, signal.SIGKILL)
            failed, degraded = (answer.result() for answer in answers)
        assert failed.status_code == 502
        assert "the large model's server" in failed.json()["error"]["message"]
        assert degraded.status_code == 200
        statistics = degraded.json()["trimtab"]
        assert statistics["lost"][0] == "large"
        assert statistics["tokens"]["small"] == statistics["instead"] > 0
        assert sum(statistics["tokens"].values()) == 120
        # what needs only the other one is answered still
        assert post(url, **greedy("", 1e9) | {"prompt": [6403, 1980]})["trimtab"]["tokens"]["large"] == 0
        assert post(lenient, **greedy(TEXTS[0], 1e9))["usage"]["completion_tokens"] == TOKENS
        page = httpx.get(lenient + "/metrics", timeout=30).text
        assert re.search(r'^trimtab:route_backend_errors_total\{backend="large"', page, re.MULTILINE)
