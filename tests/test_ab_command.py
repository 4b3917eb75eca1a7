"""`trimtab ab` and `trimtab sweep` as a user runs them: what is refused at once, and whole runs of a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trimtab.cli import app
from trimtab.compare.figures import figures, pair
from trimtab.compare.records import Record

ROOT = Path(__file__).parents[1]
QUESTIONS = [("What is 2 + 3?", 5), ("What is 4 + 4?", 8), ("What is 9 - 2?", 7), ("What is 3 * 3?", 9)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": f"q{n}", "prompt": text, "answer": right}) for n, (text, right) in enumerate(QUESTIONS)]
    path.write_text("\n".join(lines))
    return path


def refused(*arguments: object) -> str:
    """What stderr says; nothing has been loaded, so it is quick."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2, done.output
    assert "torch" not in done.output
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"--b": "quantised"}, "did you mean quantized"),
        ({"--b": "quantized:bit=8"}, "did you mean bits"),
        ({"--b": "quantized:bits=8.5"}, "bits is '8.5': give a whole number"),
        ({"--model": "smollm-135m"}, "did you mean 'smollm2-135m'"),
        ({"--b": "assisted:assistant_model=smollm-135m"}, "did you mean 'smollm2-135m'"),
        ({"--limit": "0"}, "limit is 0"),
        ({"--rounds": "0"}, "--rounds is 0"),
        ({"--until": "2"}, "--until is '2': give a percentage"),
        ({"--task": "numbr"}, "did you mean number"),
        ({"--json": "absent/out.json"}, "its folder is not there"),
        ({"--html": "/proc/out.html"}, "cannot be written"),
        ({"--engine": "http://127.0.0.1:1/v1", "--model": None}, "cannot be reached"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    prompts: Path, given: dict[str, str | None], message: str
) -> None:
    if "--engine" in given:
        pytest.importorskip("httpx")
    if "--html" in given and os.access("/proc", os.W_OK):
        pytest.skip("root may write there as far as the system says")
    options = {"--model": "smollm2-135m", "--a": "none", "--b": "none", "--prompts": str(prompts), **given}
    assert message in refused("ab", *(text for pair in options.items() if pair[1] is not None for text in pair))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": ', "bad.jsonl', line 2 is not JSON"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}', "the id '1' twice"),
        ('{"prompt": "a"}', "has no answer"),
    ],
)
def test_bad_prompts_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    options = ("--model", "smollm2-135m", "--a", "none", "--b", "none", "--prompts", path, "--task", "number")
    assert message in refused("ab", *options)


def test_bad_sweeps_are_refused(prompts: Path) -> None:
    options = ("sweep", "--model", "smollm2-135m", "--prompts", prompts, "--setup", "quantized")
    assert "with bits=5: bits is 5" in refused(*options, "--over", "bits=4,5")
    assert "give a file that ends in .png" in refused(*options, "--over", "bits=4", "--plot", "plot.txt")


def command(prompts: Path, out: Path, *more: str) -> list[str]:
    options = ["--model", "smollm2-135m", "--prompts", str(prompts), "--max-new-tokens", "8", "--threads", "1"]
    return [sys.executable, "-m", "trimtab.cli", *more, *options, "--json", str(out)]


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_figures_of_its_records(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "ab.json"
    journal = tmp_path / "ab.json.journal.jsonl"
    arguments = command(prompts, out, "ab", "--a", "none", "--b", "quantized:mode=lossless,bits=8")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
            assert process.poll() is None, process.stdout and process.stdout.read().decode()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    before = journal.read_bytes()
    before = before[: before.rindex(b"\n") + 1]
    assert not out.exists()
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert journal.read_bytes().startswith(before)
    found: dict[str, Any] = json.loads(out.read_text())
    records = [Record.from_dict(each) for each in found["records"]]
    assert [(each.id, each.side) for each in records] == [
        (f"q{n}", side) for n in range(4) for side in ("ab" if n % 2 == 0 else "ba")
    ]
    assert len(journal.read_text().splitlines()) == 1 + 8
    # lossless: side B writes side A's text, so everything but time is the same
    for a, b in zip(pair(records).a, pair(records).b, strict=True):
        assert a.text == b.text
        assert a.right == b.right
    assert found["figures"] == [asdict(each) for each in figures(pair(records), agreement=False)]
    assert all(0 < each.first_token_seconds <= each.seconds for each in records if each.first_token_seconds is not None)
    assert found["settings"]["task"] == "number"
    assert "accuracy" in done.stdout
    again = subprocess.run([*arguments, "--seed", "1"], env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "seed is 1 and" in again.stderr


@pytest.mark.slow
def test_a_sweep_and_its_picture(prompts: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "sweep.json", tmp_path / "sweep.png"
    options = ("sweep", "--setup", "quantized", "--over", "bits=8,16", "--limit", "2", "--plot", str(plot))
    done = subprocess.run(
        command(prompts, out, *options), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [point["options"] for point in found["points"]] == [{"bits": 8}, {"bits": 16}]
    assert [record["side"] for record in found["records"]] == [
        *("baseline", "bits=8", "bits=16"),
        *("bits=8", "bits=16", "baseline"),
    ]
    assert found["quality"] == "accuracy"
    assert plot.stat().st_size > 5000
