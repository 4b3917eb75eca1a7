"""`trimtab calibrate ead`: what it refuses, and what it finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.models import first_layers
from tests.test_cli import invoke, refused
from trimtab import InputError
from trimtab.calibrate_command import gives, read_prompts, table
from trimtab.integrations.transformers import loading
from trimtab.integrations.transformers.entropy_calibration import Calibration, FrontierPoint, agreement


def test_prompts_of_a_file(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("One\n\nTwo {}\n")
    lines.write_text('{"prompt": "One\\nmore"}\n\n{"prompt": "Two", "id": 4, "answer": 3}\n')
    assert read_prompts(text) == [("One", None), ("Two {}", None)]
    assert read_prompts(lines) == [("One\nmore", None), ("Two", "3")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no prompt"),
        ("\n \n", "has no prompt"),
        ('{"prompt": "x"}\nnonsense\n', "line 2 is not JSON"),
        ('{"text": "x"}\n', "line 1 is no JSON object"),
        ('{"prompt": ""}\n', "line 1: \"prompt\" is ''"),
        ("[1]\n", "line 1 is no JSON object"),
        ('{"prompt": "x", "answer": []}\n', 'line 1: "answer" is'),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


def test_bad_options_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Hello\n")
    models = ("--large", "smollm2-135m", "--small", "low-bit")
    assert "cannot be read" in refused(invoke("calibrate", "ead", str(tmp_path / "b.txt"), *models))
    assert "did you mean" in refused(
        invoke("calibrate", "ead", str(path), "--large", "smollm-135m", "--small", "low-bit")
    )
    assert "ends in .png" in refused(invoke("calibrate", "ead", str(path), *models, "--plot", "a.gif"))
    nowhere = str(tmp_path / "none" / "a.png")
    assert "folder is not there" in refused(invoke("calibrate", "ead", str(path), *models, "--plot", nowhere))
    assert "--small" in refused(invoke("calibrate", "ead", str(path), "--large", "smollm2-135m"))
    assert "ead" in invoke("calibrate", "--help").stdout


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("It is 7, then 1,200 in all.", "1200", True),
        ("It is 1200, then 7.", "1200", False),
        ("It is -3.5", "-3.5", True),
        ("none", "3", False),
        ("The capital is  PARIS, of course.", "paris", True),
        ("Rome", "paris", False),
    ],
)
def test_answers_are_found(text: str, answer: str, right: bool) -> None:
    assert gives(text, answer) is right


def test_agreement_is_up_to_the_first_difference() -> None:
    assert agreement([[1, 2, 9, 4], [5]], [[1, 2, 3, 4], [5]]) == 0.75
    assert agreement([[1, 2]], [[1, 2, 3, 4]]) == 0.5
    assert agreement([[]], [[]]) == 0.0


def test_the_table_marks_the_choice() -> None:
    points = (FrontierPoint(0.5, 0.6, 0.7, 9, 100, 2.0), FrontierPoint(float("inf"), 0.0, 0.25, 0, 100, 1.0))
    lines = table(Calibration(0.5, 0.6, points)).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("->")
    assert lines[1].split() == ["->", "0.5000", "60.0%", "0.700", "9", "50.0"]
    assert "inf" in lines[2]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("plot", [False, True])
def test_a_pair_is_calibrated(
    tmp_path: Path, smollm2: loading.Loaded, monkeypatch: pytest.MonkeyPatch, plot: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The capital of France is\nWater boils at\n")
    small = loading.Loaded(first_layers(smollm2.model, 15), smollm2.tokenizer)
    monkeypatch.setattr(loading, "load", lambda name, **_: small if name == str(tmp_path) else smollm2)
    args = ("calibrate", "ead", str(path), "--large", "smollm2-135m", "--small", str(tmp_path), "--no-chat")
    picture = tmp_path / "frontier.png"
    drawn = ("--plot", str(picture)) if plot else ()
    done = invoke(*args, "--max-new-tokens", "16", "--window", "2", "--max-runs", "3", "--json", *drawn)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert 2 <= len(found["frontier"]) <= 3
    assert {point["tokens"] for point in found["frontier"]} == {32}
    assert found["large_share"] in {point["large_share"] for point in found["frontier"]}
    if plot:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert found["large_alone"]["quality"] == 1.0
        assert all(0 <= point["quality"] <= 1 for point in found["frontier"])
