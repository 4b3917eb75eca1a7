"""Temperature selection through the real server, with the real client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ability.prompts import encoder_installed
from tests.integrations.vllm.conftest import Server, Start
from tests.integrations.vllm.engine import ROOT, environment

pytest.importorskip("vllm")
openai = pytest.importorskip("openai")
pytestmark = [pytest.mark.slow, encoder_installed]

PROCESSOR = "trimtab.integrations.vllm.temperature:TemperatureProcessor"
TRANSLATE = [{"role": "user", "content": "Translate to German: The bus leaves at noon."}]
BALLAD = [{"role": "user", "content": "Write a ballad about a homesick astronaut."}]
CHOSEN = {"CR": 0.4, "CT": 0.7, "ICL": 0.4, "IF": 0.7, "MT": 0.4, "SUMM": 0.4}
"""Of models up to 4B, as docs/temperature.md lists them."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "trace.jsonl"


@pytest.fixture(scope="module")
def running(server: Start, smollm2_directory: Path, trace: Path) -> Server:
    settings = {"trimtab": {"trace": {"path": str(trace)}}}
    return server(smollm2_directory, "--logits-processors", PROCESSOR, "--additional-config", json.dumps(settings))


def ask(running: Server, messages: list[dict[str, str]], **options: Any) -> Any:
    xargs = options.pop("xargs", {})
    return running.client().chat.completions.create(
        model="model", messages=messages, max_tokens=6, extra_body={"vllm_xargs": xargs}, **options
    )


def traced(path: Path, name: str) -> dict[str, Any]:
    """The line of a request, which comes once the engine's next step has noticed that it ended."""
    for _ in range(60):
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if found := [line for line in lines if line["id"] == name]:
            return found[0]
        time.sleep(0.5)
    raise AssertionError(f"no line of {name} in {lines}")


@pytest.mark.parametrize(("messages", "ability"), [(TRANSLATE, "MT"), (BALLAD, "CT")])
def test_the_choice_is_by_what_the_user_says(running: Server, trace: Path, messages: Any, ability: str) -> None:
    """Under a system message that would translate, after a turn that wrote: neither is the user's last turn."""
    earlier = [
        {"role": "system", "content": "Translate every text to French."},
        {"role": "user", "content": "Add 2 and 3."},
        {"role": "assistant", "content": "5"},
    ]
    name = f"auto {ability}"
    ask(
        running, earlier + messages, temperature=2.0,
        xargs={"trimtab_temperature": "auto", "trimtab_trace_id": name},
    )  # fmt: skip
    line = traced(trace, name)
    assert line["ability"] == ability
    assert line["abilities"][ability] == max(line["abilities"].values()) > 0.5
    assert (line["chosen"], line["temperature"], line["own_temperature"]) == (CHOSEN[ability], CHOSEN[ability], 2.0)
    assert line["first_token"] == 0
    assert 1 <= len(line["entropy_bits"]) <= 6
    assert all(0 <= bits <= 15.6 for bits in line["entropy_bits"])  # log2 of the vocabulary


@pytest.mark.parametrize(("own", "expected"), [(0.2, 0.2), (1.5, 0.7)])
def test_the_callers_temperature_is_an_upper_bound(running: Server, trace: Path, own: float, expected: float) -> None:
    name = f"bounded {own}"
    ask(running, TRANSLATE, temperature=own, xargs={"trimtab_temperature": "CT", "trimtab_trace_id": name})
    line = traced(trace, name)
    assert (line["ability"], line["chosen"], line["temperature"]) == ("CT", 0.7, expected)
    assert line["abilities"] is None


def test_greedy_stays_greedy(running: Server) -> None:
    plain = ask(running, TRANSLATE, temperature=0)
    asked = ask(running, TRANSLATE, temperature=0, xargs={"trimtab_temperature": "CT"})
    assert asked.choices[0].message.content == plain.choices[0].message.content


@pytest.mark.parametrize(
    ("xargs", "field"),
    [
        ({"trimtab_temperature": "hot"}, "trimtab_temperature is 'hot': give auto or one of CR, CT"),
        ({"trimtab_temperature": 0.7}, "trimtab_temperature is 0.7"),
        ({"trimtab_temperature": ["CT"]}, "trimtab_temperature is "),
        ({"trimtab_temperature": "CT", "trimtab_trace_id": 7}, "trimtab_trace_id is 7"),
    ],
)
def test_a_bad_request_is_http_400_that_names_the_field(running: Server, xargs: Any, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(running, TRANSLATE, xargs=xargs)
    assert caught.value.status_code == 400
    assert field in str(caught.value)
    assert running.alive()


def test_streams_and_several_samples(running: Server) -> None:
    options = {"temperature": 1.0, "seed": 4, "xargs": {"trimtab_temperature": "auto"}}
    whole = ask(running, BALLAD, **options).choices[0].message.content
    stream = ask(running, BALLAD, stream=True, **options)
    assert "".join(part.choices[0].delta.content or "" for part in stream if part.choices) == whole
    assert len(ask(running, BALLAD, n=3, **options).choices) == 3


def test_what_was_chosen_is_on_the_servers_metrics(running: Server) -> None:
    def counted(page: str, line: str) -> float:
        found = re.search(rf"^{re.escape(line)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    count = 'trimtab:temperature_count{ability="SUMM",model_name="model"}'
    total = 'trimtab:temperature_sum{ability="SUMM",model_name="model"}'
    under = 'trimtab:temperature_bucket{ability="SUMM",le="0.4",model_name="model"}'
    bounded = 'trimtab:temperature_bounded_total{model_name="model"}'
    before = running.get("/metrics")
    for own in (1.0, 0.3):
        ask(running, TRANSLATE, temperature=own, xargs={"trimtab_temperature": "SUMM"})
    after = running.get("/metrics")
    assert counted(after, count) - counted(before, count) == 2
    assert counted(after, total) - counted(before, total) == pytest.approx(0.4 + 0.3)
    assert counted(after, under) - counted(before, under) == 2
    assert counted(after, bounded) - counted(before, bounded) == 1
    assert "vllm:generation_tokens_total" in after


def test_the_example_runs(running: Server) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "vllm" / "temperature.py"), running.url],
        env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(auto)" in done.stdout
    assert 'trimtab:temperature_count{ability="MT",model_name="model"}' in done.stdout
