"""The real OpenAI-compatible server, as a fixture."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.vllm.engine import environment
from tests.integrations.vllm.family import Family, write_family
from trimtab.integrations.transformers.embedded import embedded_directory

START_SECONDS = 580
SMALL = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8")


@dataclass
class Server:
    """A running server.

    Attributes:
        url: without a path.
        log: what it has written, stdout and stderr.
        process: of the API server.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def client(self, **options: Any) -> Any:
        """An `openai.OpenAI`."""
        openai = pytest.importorskip("openai")
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300, **options)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def alive(self) -> bool:
        with contextlib.suppress(OSError):
            return self.process.poll() is None and self.get("/health") == ""
        return False

    def stop(self) -> None:
        """End the server and all of its processes."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Server]


@pytest.fixture(scope="session")
def smollm2_directory() -> Path:
    return embedded_directory("smollm2-135m")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Members of bench/family, in memory and as directories."""
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`server(model, *arguments, env=None) -> Server`: the one that runs already, if it was started with the same.

    There is one server at a time: asking for another one stops it. Arguments come after those of `SMALL`, so that they
    win; the name of the model in requests is `model`.
    """
    pytest.importorskip("vllm")
    running: dict[tuple[Any, ...], Server] = {}

    def start(model: str | Path, *arguments: str, env: dict[str, str] | None = None) -> Server:
        key = (str(model), arguments, tuple(sorted((env or {}).items())))
        if key in running and running[key].alive():
            return running[key]
        for old in running.values():
            old.stop()
        running.clear()
        running[key] = start_server(str(model), arguments, env or {}, tmp_path_factory.mktemp("server") / "log")
        return running[key]

    yield start
    for last in running.values():
        last.stop()


def start_server(model: str, arguments: tuple[str, ...], env: dict[str, str], log: Path) -> Server:
    """Of one model; comes back once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # not the command `vllm`: the CPU wheel's does not start
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "model", *SMALL, *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment(**env), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    started = Server(f"http://127.0.0.1:{port}", log, process)
    late = time.monotonic() + START_SECONDS
    while not started.alive():
        if process.poll() is not None or time.monotonic() > late:
            started.stop()
            pytest.fail(f"the server did not start: {' '.join(command)}\n{log.read_text()[-6000:]}")
        time.sleep(1)
    return started
