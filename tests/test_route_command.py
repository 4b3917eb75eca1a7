"""`trimtab route` on the command line; what it serves is in `tests/route`."""

from __future__ import annotations

import socket
import sys

import pytest
from typer.testing import CliRunner, Result

from trimtab.cli import app

URLS = ("--small", "http://127.0.0.1:1", "--large", "http://127.0.0.1:2")


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, ["route", *args])


def refused(*args: str) -> str:
    """The one line of an error."""
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    return line


def test_what_is_needed_is_asked_for() -> None:
    assert "--threshold" in refused(*URLS)
    assert "--large" in refused("--small", URLS[1], "--threshold", "3")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'trimtab[route]'" in refused(*URLS, "--threshold", "3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", "-1"), "threshold is -1"),
        (("--threshold", "high"), "--threshold is 'high'"),
        (("--threshold", "3", "--window", "0"), "window is 0"),
        (("--threshold", "3", "--window", "1000000"), "window is 1000000"),
        (("--threshold", "3", "--start", "medium"), "--start is 'medium'"),
        (("--threshold", "3", "--port", "0"), "--port is 0"),
        (("--threshold", "3", "--on-lost", "panic"), "--on-lost is 'panic'"),
        (("--threshold", "3", "--top-logprobs", "0"), "--top-logprobs is 0"),
        (("--threshold", "3", "--retry-seconds", "0"), "--retry-seconds is 0"),
    ],
)
def test_bad_options_are_one_line(options: tuple[str, ...], message: str) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    assert message in refused(*URLS, *options)


def test_a_server_that_is_not_there_is_one_line() -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        line = refused("--small", url, "--large", url, "--threshold", "3")
    assert f"--small is '{url}': the small model's server cannot be reached" in line
