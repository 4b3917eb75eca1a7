"""`trimtab synthesize`: what it refuses, and that a kill loses and doubles nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.models import first_layers
from tests.test_cli import COMMAND, invoke, no_loading, refused  # noqa: F401 - a fixture
from trimtab import InputError
from trimtab.integrations.transformers.loading import Loaded
from trimtab.synthesize_command import read_template

SEEDS = "".join(
    json.dumps({"text": text, "kind": kind}) + "\n"
    for text, kind in (
        ("The soup was cold and the waiter was colder.", "restaurant"),
        ("Our room looked over the harbour.", "hotel"),
        ("The battery lasts two days.", "telephone"),
    )
)
MODELS = ("--expert", "smollm2-135m", "--base", "smollm2-135m")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """All that is required but the models and the count; an option that comes again counts the last time."""
    path = tmp_path / "seeds.jsonl"
    path.write_text(SEEDS)
    output = tmp_path / "out.jsonl"
    few = ("--negative-examples", "2")
    return ["--seeds", str(path), "--template", "A {{ kind }} review:", "-o", str(output), "--count", "4", *few]


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--count", "0"], "--count is 0"),
        (["--count", "many"], "--count is 'many': give a whole number"),
        (["--eta", "-0.1"], "--eta is -0.1: give a number of at least 0"),
        (["--gamma", "-1"], "--gamma is -1.0"),
        (["--plausibility", "2"], "--plausibility is 2.0"),
        (["--temperature", "0"], "--temperature is 0.0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--stop", ""], "--stop is ('',)"),
        (["--threads", "0"], "--threads is 0"),
        (["--negative-examples", "4"], "negative_examples is 4 and the pool has 3 different texts: give 1 more seeds"),
        (["--template", "{{ knid }}"], "names 'knid', which no seed has: did you mean 'kind'?"),
        (["--template", "none.j2"], "there is no such file"),
        (["--template", " "], "is empty"),
        (["--seeds", "none.jsonl"], "--seeds 'none.jsonl' cannot be read"),
        (["--expert", "smollm-135m"], "--expert is 'smollm-135m'"),
        (["--base", "smollm-135m"], "--base is 'smollm-135m'"),
        (["--judge", "smollm-135m"], "--judge is 'smollm-135m'"),
        (["-o", "none/out.jsonl"], "cannot be written"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(options: list[str], given: list[str], message: str) -> None:
    assert message in refused(invoke("synthesize", *MODELS, *options, *given))


@pytest.mark.usefixtures("no_loading")
def test_bad_files_are_refused(options: list[str], tmp_path: Path) -> None:
    assert "--base is missing with --gamma 0.2" in refused(invoke("synthesize", *MODELS[:2], *options))
    reference = tmp_path / "real.jsonl"
    reference.write_text('{"text": "Our room  looked over the harbour."}\n')
    message = refused(invoke("synthesize", *MODELS, *options, "--reference", str(reference)))
    assert "seed 1 ('Our room looked over the harbour.') is in the reference" in message
    reference.write_text(SEEDS + "{\n")
    assert "line 4 is not JSON" in refused(invoke("synthesize", *MODELS, *options, "--seeds", str(reference)))
    (tmp_path / "out.jsonl").write_text("my notes")
    assert "does not say how they were made" in refused(invoke("synthesize", *MODELS, *options))
    assert (tmp_path / "out.jsonl").read_text() == "my notes"


def test_a_template_is_a_file_or_text(tmp_path: Path) -> None:
    path = tmp_path / "a.j2"
    path.write_text("A {{ kind }}:\n")
    assert read_template(str(path)) == "A {{ kind }}:\n"
    assert read_template("See a.txt") == "See a.txt"
    assert read_template("x" * 5000) == "x" * 5000
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        read_template(str(path))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_texts(tmp_path: Path, smollm2: Loaded, options: list[str]) -> None:
    """The real command, killed while it writes, against the same command left alone."""
    model = str(tmp_path / "model")
    first_layers(smollm2.model, 2).save_pretrained(model)
    smollm2.tokenizer.save_pretrained(model)
    args = [
        "--expert",
        model,
        "--base",
        model,
        *options,
        "--count",
        "12",
        "--batch-size",
        "2",
        "--max-new-tokens",
        "6",
        "--threads",
        "1",
    ]
    alone = invoke("synthesize", *args, "-o", str(tmp_path / "alone.jsonl"), "--json")
    assert alone.exit_code == 0, alone.stderr
    said = json.loads(alone.stdout)
    expected = (tmp_path / "alone.jsonl").read_bytes()
    assert (said["texts"], said["generated"], expected.count(b"\n")) == (12, 12, 12)

    output = tmp_path / "out.jsonl"
    process = subprocess.Popen([*COMMAND, "synthesize", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 90
    while not (output.exists() and output.read_bytes().count(b"\n") >= 4) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    cut = output.read_bytes()
    lines = cut.count(b"\n")
    assert 4 <= lines < 12
    assert expected.startswith(cut)
    with output.open("ab") as file:
        file.write(b'{"index": 8, "te')  # and its last batch torn, as by a power cut

    assert "gamma is 0.5 and" in refused(invoke("synthesize", *args, "--gamma", "0.5"))
    assert f"has {lines} texts" in refused(invoke("synthesize", *args, "--count", "3"))
    resumed = subprocess.run([*COMMAND, "synthesize", *args], capture_output=True, text=True, timeout=120, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert f"has {lines // 2 * 2} of 12 texts" in resumed.stderr
    assert output.read_bytes() == expected
    assert f"12 texts in {output}" in resumed.stdout

    again = json.loads(invoke("synthesize", *args, "--json").stdout)  # nothing left to do
    assert (again["texts"], again["generated"]) == (12, 0)
    assert output.read_bytes() == expected
