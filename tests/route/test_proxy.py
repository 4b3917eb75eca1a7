"""Turns, requests and failures over scripted servers; `test_servers.py` has the real ones."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.route.pairs import GATE, LARGE, SMALL, Pair, ids_of
from tests.route.scripted import SURE, UNSURE, two_choices
from trimtab.decoding.entropy_gate import GateSettings
from trimtab.decoding.top_entropy import entropy_range
from trimtab.keep_alive import IDLE_SECONDS
from trimtab.route.backend import Patience

PROMPT = (5, 6, 7)


def events(answer: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def expected(bits: Any, gate: GateSettings, tokens: int) -> list[int]:
    """The gate in plain Python: what is written after PROMPT if both models are as unsure as `bits` says."""
    large, stay, seen, found = gate.start_large, 0, [], []
    for place in range(len(PROMPT), len(PROMPT) + tokens):
        found.append((LARGE if large else SMALL) + place)
        seen.append(bits(place))
        mean = sum(seen[-gate.window :]) / len(seen[-gate.window :])
        stay += 1
        wants = mean > (gate.lower if large else gate.threshold)
        if wants != large and stay >= (gate.min_stay or gate.window):
            large, stay = wants, 0
    return found


# -- turns -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.2, 0.45, 0.55, 0.8, 1.0]), min_size=16, max_size=16), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_turns_are_the_gates_and_each_model_reads_all_before_it(
    pair: Pair, series: list[float], data: st.DataObject
) -> None:
    def bits(place: int) -> float:
        return series[place % len(series)]

    window, stay = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    options = {"trimtab_window": window, "trimtab_min_stay": stay, "trimtab_threshold": 0.5}
    start = data.draw(st.sampled_from(["small", "large"]))
    for one in (pair.small, pair.large):
        one.bits, one.chunk = bits, data.draw(st.integers(1, 4))
        one.asked.clear()
    answer = pair.write(max_tokens=13, vllm_xargs={**options, "trimtab_start": start})
    wanted = expected(bits, GateSettings(0.5, window, stay, start_large=start == "large"), 13)
    assert ids_of(answer) == wanted
    for one in (pair.small, pair.large):
        for body in one.asked:
            read = len(body["prompt"]) - len(PROMPT)
            assert body["prompt"] == [*PROMPT, *wanted[:read]]
            assert body["max_tokens"] == 13 - read
    statistics = answer.json()["trimtab"]
    large = sum(token >= LARGE for token in wanted)
    assert statistics["tokens"] == {"small": 13 - large, "large": large}
    assert statistics["large_share"] == round(large / 13, 4)
    changes = sum((one >= LARGE) != (other >= LARGE) for one, other in pairwise(wanted))
    assert statistics["switches"] == changes
    assert len(pair.small.asked) + len(pair.large.asked) == changes + 1
    assert answer.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 13, "total_tokens": 16}


def test_a_stream_is_the_whole_answer_in_parts(pair: Pair) -> None:
    pair.small.bits = lambda place: UNSURE if place % 5 == 0 else SURE
    whole = pair.write().json()
    parts = events(pair.write(stream=True, stream_options={"include_usage": True}))
    choices = [part["choices"][0] for part in parts[:-1]]
    assert [token for choice in choices for token in choice["token_ids"]] == whole["choices"][0]["token_ids"]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert parts[-2]["trimtab"] == whole["trimtab"]
    assert (parts[-1]["usage"], parts[-1]["choices"]) == (whole["usage"], [])
    assert {part["object"] for part in parts} == {"text_completion"}


def test_a_chat_goes_through_the_template_of_the_large_server(pair: Pair, tokenizer: Any) -> None:
    asked = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 4}
    whole = pair.post("/v1/chat/completions", **asked, return_token_ids=True).json()
    assert pair.small.asked[0]["prompt"] == pair.large.encode("Hello there")
    message = whole["choices"][0]["message"]
    assert message == {"role": "assistant", "content": tokenizer.decode(whole["choices"][0]["token_ids"])}
    parts = events(pair.post("/v1/chat/completions", **asked, stream=True))
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == message["content"]
    assert (whole["object"], parts[0]["object"]) == ("chat.completion", "chat.completion.chunk")


def test_a_chat_without_max_tokens_has_the_rest_of_the_shorter_context(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.small.eos = 3
    asked = {"messages": [{"role": "user", "content": "Hello there"}]}
    answer = pair.post("/v1/chat/completions", **asked).json()
    prompt = answer["usage"]["prompt_tokens"]
    assert pair.small.asked[0]["max_tokens"] == 1000 - prompt
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 3)


def test_the_models_end_is_not_in_the_text(pair: Pair, tokenizer: Any) -> None:
    pair.small.eos = 3
    choice = pair.write().json()["choices"][0]
    assert len(choice["token_ids"]) == 3
    assert choice["text"] == tokenizer.decode(choice["token_ids"][:2])
    included = pair.write(include_stop_str_in_output=True).json()["choices"][0]
    assert included["text"] == tokenizer.decode(choice["token_ids"])


def test_each_turn_has_a_seed_of_its_own_and_what_is_left_of_the_limits(pair: Pair) -> None:
    pair.small.bits = lambda place: UNSURE if place == 5 else SURE
    pair.write(seed=7, min_tokens=5, temperature=0.5, top_p=0.9, repetition_penalty=1.1)
    first, second, third = pair.small.asked[0], pair.large.asked[0], pair.small.asked[1]
    assert (first["seed"], first["min_tokens"], first["max_tokens"]) == (7, 5, 12)
    assert (second["min_tokens"], second["max_tokens"]) == (2, 9)
    assert len({one["seed"] for one in (first, second, third)}) == 3
    assert all(0 <= one["seed"] < 2**63 for one in (first, second, third))
    for one in (first, second, third):
        assert (one["temperature"], one["top_p"], one["repetition_penalty"]) == (0.5, 0.9, 1.1)


def test_what_is_known_of_the_entropy_is_told(pair: Pair) -> None:
    """Two of the vocabulary's log-probabilities whose mass is not all of it: the mean may lie on either side."""
    pair.small.bits, pair.small.mass = lambda place: 0.5, 0.9
    bits = entropy_range([math.log(0.9) + value for value in two_choices(0.5)], 49152)
    for threshold, uncertain in ((0.5, 0), (bits.high + 0.1, 0), ((bits.estimate + bits.high) / 2, 12)):
        answer = pair.write(vllm_xargs={"trimtab_threshold": threshold, "trimtab_min_stay": 99}).json()
        assert answer["trimtab"]["uncertain"] == uncertain


# -- text --------------------------------------------------------------------------------------------------------------


def spelled(pair: Pair, tokenizer: Any, text: str) -> list[int]:
    """Both servers write this text's tokens, taking turns at each."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for one, bits in ((pair.small, UNSURE), (pair.large, SURE)):
        one.token = lambda place: ids[(place - len(PROMPT)) % len(ids)]
        one.bits = lambda place, bits=bits: bits
    return list(ids)


def test_characters_of_several_tokens_survive_hand_overs(pair: Pair, tokenizer: Any) -> None:
    text = "A 👩‍🔬 in 東京 — naïve 🦀🦀"
    ids = spelled(pair, tokenizer, text)
    assert max(tokenizer.decode([token]).count("\ufffd") for token in ids) > 0
    answer = pair.write(max_tokens=len(ids)).json()
    assert answer["choices"][0]["text"] == text
    assert answer["trimtab"]["switches"] == len(ids) - 1
    parts = events(pair.write(max_tokens=len(ids), stream=True))
    texts = [part["choices"][0]["text"] for part in parts]
    assert "".join(texts) == text
    assert not any("\ufffd" in part for part in texts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_may_begin_under_one_model_and_end_under_the_other(
    pair: Pair, tokenizer: Any, stream: bool, included: bool
) -> None:
    ids = spelled(pair, tokenizer, "one two three four five six seven")
    asked = {"stop": ["six", "ee fo"], "include_stop_str_in_output": included, "stream": stream}
    answer = pair.write(max_tokens=len(ids), **asked)
    parts = events(answer) if stream else [answer.json()]
    text = "".join(part["choices"][0]["text"] for part in parts)
    assert text == ("one two three fo" if included else "one two thr")
    last = parts[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "ee fo")
    wait_for(lambda: pair.small.running + pair.large.running == 0)


# -- bad requests ------------------------------------------------------------------------------------------------------

BAD = [
    ({"n": 2}, "n"),
    ({"best_of": 3}, "best_of"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -0.5}, "frequency_penalty"),
    ({"logprobs": 3}, "logprobs"),
    ({"echo": True}, "echo"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"prompt": ["a", "b"]}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [10**9]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "ten"}, "max_tokens"),
    ({"max_tokens": 2000}, "max_tokens"),
    ({"seed": 1.5}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"model": "other"}, "model"),
    ({"vllm_xargs": 3}, "vllm_xargs"),
    ({"vllm_xargs": {"trimtab_threshold": -1}}, "trimtab_threshold"),
    ({"vllm_xargs": {"trimtab_threshold": "0.5"}}, "trimtab_threshold"),
    ({"vllm_xargs": {"trimtab_threshold": True}}, "trimtab_threshold"),
    ({"vllm_xargs": {"trimtab_window": 0}}, "trimtab_window"),
    ({"vllm_xargs": {"trimtab_window": 2.5}}, "trimtab_window"),
    ({"vllm_xargs": {"trimtab_window": 10**9}}, "trimtab_window"),
    ({"vllm_xargs": {"trimtab_min_stay": 0}}, "trimtab_min_stay"),
    ({"vllm_xargs": {"trimtab_decay": 1.0}}, "trimtab_decay"),
    ({"vllm_xargs": {"trimtab_lower_threshold": 0.9}}, "trimtab_lower_threshold"),
    ({"vllm_xargs": {"trimtab_start": "medium"}}, "trimtab_start"),
    ({"vllm_xargs": {"trimtab_treshold": 0.9}}, "trimtab_treshold"),
]  # fmt: skip


def test_a_bad_request_is_http_400_that_names_the_field(pair: Pair) -> None:
    for body, field in BAD:
        answer = pair.post(**{"prompt": [5, 6, 7], "max_tokens": 4, **body})
        error = answer.json()["error"]
        assert answer.status_code == (404 if field == "model" else 400), (body, answer.text)
        assert error["param"] == field, (body, error)
        assert field.removesuffix("tokens") in error["message"], error
    answer = httpx.post(pair.url + "/v1/completions", content=b"{no", timeout=30)
    assert answer.status_code == 400
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    for messages in ([], ["hello"], [picture]):
        answer = pair.post("/v1/chat/completions", messages=messages)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert not pair.small.asked
    assert len(ids_of(pair.write())) == 12
    assert pair.metric('trimtab:route_requests_total{outcome="refused"}') == len(BAD) + 4
    assert pair.metric("trimtab:route_requests_running") == 0


def test_fields_that_ask_for_nothing_are_taken(pair: Pair) -> None:
    asks_nothing = {"n": 1, "presence_penalty": 0.0, "logprobs": None, "tools": [], "response_format": {"type": "text"}}
    assert len(ids_of(pair.write(user="someone", metadata={"a": "b"}, echo=False, **asks_nothing))) == 12


def test_a_servers_refusal_is_handed_on(pair: Pair) -> None:
    pair.small.status = 422
    for stream in (False, True):
        answer = pair.write(stream=stream)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "temperature")
        assert "the small model's server: as scripted" in answer.json()["error"]["message"]


# -- lost servers ------------------------------------------------------------------------------------------------------


def unsure_at(place: int) -> Callable[[int], float]:
    return lambda here: UNSURE if here >= place else SURE


def test_a_lost_server_ends_the_answer_with_an_error(make_pair: Callable[..., Pair]) -> None:
    """And is used again as soon as it is back."""
    pair = make_pair(patience=Patience(retry=3))
    pair.small.bits = unsure_at(6)
    pair.large.tokens_to_tear = 0
    answer = pair.write()
    assert answer.status_code == 502
    assert "the large model's server broke off within an answer" in answer.json()["error"]["message"]
    *parts, last = events(pair.write(stream=True))
    assert [token for part in parts for token in part["choices"][0]["token_ids"]] == [303, 304, 305, 306]
    assert last["error"]["code"] == 502
    assert pair.metric('trimtab:route_backend_errors_total{backend="large",reason="torn"}') == 2
    assert httpx.get(pair.url + "/health").status_code == 503
    pair.large.tokens_to_tear = None
    turns = [(LARGE if place % 2 else SMALL) + place for place in range(7, 15)]
    assert ids_of(pair.write()) == [303, 304, 305, 306, *turns]
    wait_for(lambda: httpx.get(pair.url + "/health").status_code == 200)


@pytest.mark.parametrize("error", [None, {"message": "engine died", "code": 500}])
def test_another_may_stand_in(make_pair: Callable[..., Pair], error: Any) -> None:
    pair = make_pair(on_lost="other")
    pair.small.bits = unsure_at(6)
    pair.large.bits = unsure_at(0)
    pair.large.tokens_to_tear, pair.large.error = 2, error
    answer = pair.write()
    # four of the small model, two of the large one, and the small one in its place
    assert ids_of(answer) == [303, 304, 305, 306, 607, 608, *range(309, 315)]
    statistics = answer.json()["trimtab"]
    assert (statistics["lost"], statistics["instead"]) == (["large"], 6)
    assert pair.metric('trimtab:route_instead_tokens_total{lost="large"}') == 6
    assert httpx.get(pair.url + "/health").status_code == 200
    time.sleep(0.4)
    pair.large.tokens_to_tear = None
    answer = pair.write()
    assert ids_of(answer) == [303, 304, 305, 306, *range(607, 615)]
    assert answer.json()["trimtab"]["lost"] == []


def test_a_server_that_comes_back_takes_its_turn_within_an_answer(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(on_lost="other", patience=Patience(retry=0.2))
    pair.small.bits = pair.large.bits = unsure_at(0)
    pair.large.status = 503
    pair.small.seconds = lambda number: 0.1
    pair.large.seconds = lambda number: 0.0

    def recovered(place: int) -> int:
        pair.large.status = 200 if place > 6 else 503
        return SMALL + place

    pair.small.token = recovered
    ids = ids_of(pair.write(max_tokens=20))
    assert ids[:4] == [303, 304, 305, 306]
    assert ids[-1] == LARGE + 22


def test_the_large_model_may_stand_in_for_the_small_one_only(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(on_lost="large")
    pair.small.tokens_to_tear = 2
    assert ids_of(pair.write()) == [303, 304, *range(605, 615)]
    pair.small.tokens_to_tear, pair.large.tokens_to_tear = None, 0
    pair.small.bits = unsure_at(0)
    time.sleep(0.4)
    assert pair.write().status_code == 502


@pytest.mark.parametrize("on_lost", ["fail", "other"])
def test_texts_are_tokenized_by_either_but_chats_by_the_large_models_server(
    make_pair: Callable[..., Pair], on_lost: str
) -> None:
    pair = make_pair(on_lost=on_lost)
    pair.large.tokenizes = False
    assert pair.write("Hello there").status_code == 200
    assert pair.small.asked[0]["prompt"] == pair.small.encode("Hello there")
    time.sleep(0.4)
    chat = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 4}
    assert pair.post("/v1/chat/completions", **chat).status_code == (502 if on_lost == "fail" else 200)


def test_a_loss_leaves_answers_alone_that_the_server_goes_on_with(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(on_lost="other", patience=Patience(retry=30))
    pair.small.seconds = lambda number: 0.3
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(pair.write)
        wait_for(lambda: pair.small.running == 1)
        pair.small.status = 500
        second = pair.write(max_tokens=2)
        assert ids_of(first.result()) == list(range(303, 315))
    assert ids_of(second) == [603, 604]
    third = pair.write(max_tokens=2)
    assert ids_of(third) == [603, 604]
    assert third.json()["trimtab"] == second.json()["trimtab"]
    assert third.json()["trimtab"]["lost"] == ["small"]


@pytest.mark.parametrize("on_lost", ["fail", "large", "other"])
def test_both_lost_is_an_error_and_no_loop(make_pair: Callable[..., Pair], on_lost: str) -> None:
    pair = make_pair(on_lost=on_lost, patience=Patience(retry=1e-9))
    pair.small.status = pair.large.status = 500
    answer = pair.write()
    assert answer.status_code == 502
    assert "answers with status 500: as scripted" in answer.json()["error"]["message"]


@pytest.mark.parametrize("number", [0, 3])
def test_a_silent_server_is_lost_in_time(make_pair: Callable[..., Pair], number: int) -> None:
    """The first token has a limit of its own."""
    pair = make_pair(patience=Patience(first_token=0.6, between_tokens=0.2, retry=0.1))
    pair.small.seconds = lambda here: 30.0 if here == number else 0.4 if here == 0 else 0.0
    begin = time.monotonic()
    answer = pair.write()
    assert time.monotonic() - begin < 5
    assert answer.status_code == 504
    assert "was silent for too long" in answer.json()["error"]["message"]
    wait_for(lambda: pair.small.running == 0)


def test_an_idle_connection_is_left_before_a_server_closes_it(pair: Pair) -> None:
    for pause in (0, 0, IDLE_SECONDS + 0.3):
        time.sleep(pause)
        pair.post("/v1/chat/completions", messages=[{"role": "user", "content": "two"}], max_tokens=2)
    first, second, third = pair.large.ports  # it tokenizes, and the small one writes
    assert first == second != third


# -- clients that go ---------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", [0, 3])
def test_a_client_that_goes_stops_the_server(pair: Pair, stream: bool, number: int) -> None:
    """Before the first token, and after some."""
    pair.small.seconds = lambda here: 20.0 if here == number else 0.0
    asked = {"prompt": [5, 6, 7], "max_tokens": 12, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(pair.url + "/v1/completions", json=asked, timeout=1.5)
    assert len(pair.small.asked) == 1
    wait_for(lambda: pair.small.running == 0)
    wait_for(lambda: pair.metric('trimtab:route_requests_total{outcome="cancelled"}') == 1)
    assert pair.metric("trimtab:route_requests_running") == 0


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_models_metrics_and_keys(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(keys={"large": "secret"})
    card = httpx.get(pair.url + "/v1/models").json()["data"][0]
    assert (card["id"], card["max_model_len"]) == ("pair", 1000)
    pair.small.bits = unsure_at(6)
    httpx.post(
        pair.url + "/v1/completions",
        json={"prompt": [5, 6, 7], "max_tokens": 8, "vllm_xargs": {"trimtab_trace_id": "a"}},
        headers={"authorization": "Bearer mine", "cookie": "private"},
        timeout=30,
    )
    assert pair.small.headers[0]["authorization"] == "Bearer mine"
    assert pair.large.headers[0]["authorization"] == "Bearer secret"
    assert "cookie" not in pair.small.headers[0]
    assert pair.small.asked[0]["vllm_xargs"] == {"trimtab_trace_id": "a"}
    small, large = (pair.metric(f'trimtab:route_tokens_total{{writer="{name}"}}') for name in ("small", "large"))
    assert small + large == 8
    assert pair.metric("trimtab:route_large_share") == large / 8 > 0
    assert pair.metric('trimtab:route_requests_total{outcome="ok"}') == 1
    assert pair.metric("trimtab:route_hand_over_seconds_count") == pair.metric("trimtab:route_switches_total") > 0


def test_many_requests_at_once(pair: Pair) -> None:
    pair.small.seconds = pair.large.seconds = lambda number: 0.002
    pair.small.bits = pair.large.bits = lambda place: UNSURE if place % 3 == 0 else SURE
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda index: ids_of(pair.write(max_tokens=10 + index)), range(16)))
    for index, ids in enumerate(found):
        assert ids == expected(pair.small.bits, GATE, 10 + index)
