"""Sides that are servers: what is sent, what is timed, and what each way of failing says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("httpx")

from trimtab.compare.engines.server import ServerDecoder
from trimtab.compare.prompts import Prompt
from trimtab.compare.setups import parse_setup
from trimtab.errors import InputError
from trimtab.keep_alive import IDLE_SECONDS

PAUSE = 0.05


class Handler(BaseHTTPRequestHandler):
    """Speaks the protocol as OpenAI's reference has it: chunks of text, then usage in a chunk without choices."""

    protocol_version = "HTTP/1.1"  # whose connections outlive an answer
    models: list[str] = ["tiny"]
    vllm = False
    answer = "good"
    bodies: list[tuple[str, dict[str, Any]]] = []
    ports: list[int] = []

    def log_message(self, *_: object) -> None:
        pass

    def parse_request(self) -> bool:
        self.ports.append(self.client_address[1])
        return super().parse_request()

    def do_GET(self) -> None:
        found: Any = {"data": [{"id": name} for name in self.models]}
        if self.path == "/version" and self.vllm:
            found = {"version": "0.32.0"}
        elif self.path != "/v1/models":
            self.send_error(404)
            return
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append((self.path, body))
        if self.answer == "refused":
            self.send_error(400, "vllm_xargs is bad")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path.endswith("chat/completions")
        if chat:
            self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for text in ("Two", " and", " two"):
            time.sleep(PAUSE)
            self._event({"choices": [{"delta": {"content": text}} if chat else {"text": text}]})
            if self.answer == "broken":
                self._event({"error": {"message": "the engine died"}})
                return
        if self.answer != "uncounted":
            time.sleep(PAUSE)  # what comes after the last token is none of its time
            self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}})
        self._write(b"data: [DONE]\n\n")
        self._write(b"")

    def _event(self, event: dict[str, Any]) -> None:
        self._write(f"data: {json.dumps(event)}\n\n".encode())

    def _write(self, chunk: bytes) -> None:
        self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.flush()


@pytest.fixture
def url() -> Iterator[str]:
    Handler.models, Handler.vllm, Handler.answer, Handler.bodies = ["tiny"], False, "good", []
    Handler.ports = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def decoder(url: str, text: str = "none", chat: bool | None = None, model: str | None = None) -> ServerDecoder:
    return ServerDecoder(parse_setup(text, model=model, engine=url, sampling={}), chat)


def test_streams_are_read_counted_and_timed(url: str) -> None:
    found = decoder(url).decode(Prompt("1", "all", "2 and 2"), 5, 16)
    assert (found.text, found.tokens, found.prompt_tokens) == ("Two and two", 4, 7)
    assert found.first_token_seconds is not None
    assert PAUSE <= found.first_token_seconds < found.seconds
    assert found.seconds >= 3 * PAUSE
    ((path, body),) = Handler.bodies
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "2 and 2"}]
    assert (body["model"], body["seed"], body["max_tokens"], body["temperature"]) == ("tiny", 5, 16, 0.0)
    assert "cache_salt" not in body
    assert "vllm_xargs" not in body


def test_bare_text_and_chats(url: str) -> None:
    assert decoder(url, chat=False).decode(Prompt("1", "all", "2 and 2"), 0, 4).text == "Two and two"
    assert Handler.bodies[0][0] == "/v1/completions"
    assert Handler.bodies[0][1]["prompt"] == "2 and 2"
    chat = ({"role": "system", "content": "Count."}, {"role": "user", "content": "2 and 2"})
    decoder(url, chat=False).decode(Prompt("1", "all", "2 and 2", messages=chat), 0, 4)
    assert Handler.bodies[1][1]["messages"] == list(chat)


def test_no_request_finds_anothers_prompt_in_vllms_cache(url: str) -> None:
    Handler.vllm = True
    side = decoder(url)
    for _ in range(2):
        side.decode(Prompt("1", "all", "2 and 2"), 0, 4)
    first, second = (body["cache_salt"] for _, body in Handler.bodies)
    assert first != second


@pytest.mark.parametrize(
    ("setup", "sent", "temperature"),
    [
        ("temperature", {"trimtab_temperature": "auto"}, 2.0),
        ("temperature:temperature=1.2", {"trimtab_temperature": "auto"}, 1.2),
        ("ead:threshold=0.5", {"trimtab_threshold": 0.5}, 0.0),
        ("fusion:alpha=dynamic", {"trimtab_alpha": "dynamic"}, 0.0),
        ("steer:gamma=0.3,temperature=0.7", {"trimtab_gamma": 0.3}, 0.7),
    ],
)
def test_methods_are_asked_for_by_request(url: str, setup: str, sent: dict[str, Any], temperature: float) -> None:
    decoder(url, setup).decode(Prompt("1", "all", "x"), 0, 4)
    assert Handler.bodies[0][1]["vllm_xargs"] == sent
    assert Handler.bodies[0][1]["temperature"] == temperature


@pytest.mark.parametrize(
    ("answer", "message"),
    [("refused", "HTTP 400"), ("broken", "the engine died"), ("uncounted", "sends no usage")],
)
def test_a_request_that_fails_says_why(url: str, answer: str, message: str) -> None:
    Handler.answer = answer
    with pytest.raises(RuntimeError, match=message):
        decoder(url).decode(Prompt("1", "all", "x"), 0, 4)


@pytest.mark.parametrize("pause", [0, IDLE_SECONDS + 0.3])
def test_an_idle_connection_is_left_before_a_server_closes_it(url: str, pause: float) -> None:
    Handler.vllm = True
    side = decoder(url)
    time.sleep(pause)
    side.decode(Prompt("1", "all", "2 and 2"), 0, 4)
    models, version, completion = Handler.ports
    assert models == version
    assert (version == completion) == (pause == 0)


def test_servers_that_cannot_be_used_are_refused_at_once(url: str) -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        decoder("http://127.0.0.1:1/v1")
    with pytest.raises(InputError, match="HTTP 404: give the address up to its /v1"):
        decoder(url.removesuffix("/v1"))
    with pytest.raises(InputError, match="has no model 'large': give model= of tiny"):
        decoder(url, model="large")
    Handler.models = ["tiny", "small"]
    with pytest.raises(InputError, match="serves several models"):
        decoder(url)
