"""`trimtab temperature fit`: what it refuses, what it measures and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.test_cli import invoke, refused
from trimtab.command_support import encode
from trimtab.decoding.score_table import ScoreTable
from trimtab.decoding.temperature import ABILITIES
from trimtab.integrations.transformers import loading, temperature_selector
from trimtab.integrations.transformers.loading import Loaded
from trimtab.integrations.transformers.temperature_fit import PAPER_GRID, sample_scores
from trimtab.scorers import contains
from trimtab.temperature_fit_command import ABILITIES as NAMES
from trimtab.temperature_fit_command import DEFAULT_GRID, read_grid

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}


def data_file(directory: Path, **extra: str) -> Path:
    path = directory / "data.jsonl"
    lines = [
        {"prompt": f"What is the capital of {country}? Answer with one word.", "answer": city} | extra
        for country, city in CAPITALS.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def given(data: Path, *more: str) -> list[str]:
    base = ["temperature", "fit", "--model", "smollm2-135m", "--data", str(data), "--scorer", "contains"]
    return [*base, *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--scorer", "contain"), "did you mean contains"),
        (("--temperatures", "0.1,x"), "holds 'x'"),
        (("--temperatures", "0,0.5"), "above 0"),
        (("--temperatures", "-0.5,0.5"), "above 0"),
        (("--temperatures", "0.7,0.4"), "ascending"),
        (("--ability", "MATH"), "--ability is 'MATH'"),
        (("--samples", "0"), "--samples is 0"),
        (("--threads", "0"), "--threads is 0"),
        (("--seed", "-1"), "--seed is -1"),
        (("--model", "smollm2-135n"), "did you mean 'smollm2-135m'"),
        (("--output", "/no/such/folder/t.json"), "a folder that exists"),
        (("--data", "/no/such/file"), "cannot be read"),
    ],
)
def test_bad_options_are_one_line_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(loading, "load", lambda *args, **options: pytest.fail("the model was loaded"))
    assert message in refused(invoke(*given(data_file(tmp_path, ability="IF"), *more)))


def test_an_existing_table_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "t.json"
    output.write_text("mine")
    assert "--force" in refused(invoke(*given(data_file(tmp_path, ability="IF"), "-o", str(output))))
    assert output.read_text() == "mine"


@pytest.mark.slow
def test_the_command_measures_a_real_model(tmp_path: Path, smollm2: Loaded) -> None:
    """The table is what the library measures on the same ids, and the selector reads it."""
    model, tokenizer = smollm2
    output = tmp_path / "t.json"
    options = ["--temperatures", "0.1,1.9", "--samples", "2", "--max-new-tokens", "6", "--seed", "3"]
    done = invoke(*given(data_file(tmp_path), "--ability", "IF", *options, "-o", str(output), "--json"))
    assert done.exit_code == 0, done.stderr
    record = json.loads(output.read_text())
    assert json.loads(done.stdout) == record
    prompts = [
        encode(
            tokenizer, f"What is the capital of {country}? Answer with one word.",
            chat=None, system=None, model_name="smollm2-135m",
        )["input_ids"][0].tolist()
        for country in CAPITALS
    ]  # fmt: skip
    scores = sample_scores(
        model, tokenizer, prompts, [[city] for city in CAPITALS.values()], contains, [0.1, 1.9],
        samples=2, max_new_tokens=6, seed=3,
    )  # fmt: skip
    about = record["models"]["smollm2-135m"]
    assert about["scores"]["IF"] == pytest.approx(scores.mean(0).tolist(), abs=1e-6)
    assert about["scores"]["IF"][0] > 0.5 > about["scores"]["IF"][1]
    assert about["measured"]["IF"]["mutation_temperature"] == 1.9
    assert set(about["borrowed"]) == set(ABILITIES) - {"IF"}
    table = ScoreTable.read(output)
    assert table.relative("smollm2-135m")[ABILITIES.index("IF"), 0] == 1


@pytest.mark.slow
def test_prompts_without_ability_are_labelled_by_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: Loaded
) -> None:
    asked: list[str] = []

    class Selector:
        def __init__(self, model: float) -> None: ...

        def predict(self, prompts: list[str]) -> temperature_selector.Prediction:
            asked.extend(prompts)
            abilities = torch.eye(6)[[ABILITIES.index("MT")] * len(prompts)]
            return temperature_selector.Prediction(abilities, torch.ones(len(prompts)))

    monkeypatch.setattr(temperature_selector, "TemperatureSelector", Selector)
    path = data_file(tmp_path)
    path.write_text(path.read_text() + '{"prompt": "Say yes.", "answer": "yes", "ability": "IF"}\n')
    done = invoke(*given(path, "--temperatures", "0.1,1", "--samples", "1", "--max-new-tokens", "4"))
    assert done.exit_code == 0, done.stderr
    assert len(asked) == 3
    assert '3 of 4 prompts have no "ability": labelled by the classifier' in done.stderr
    first = [line.split()[:2] for line in done.stdout.splitlines()]
    assert ["MT", "3"] in first
    assert ["IF", "1"] in first
    assert "taken from the size class 1-4B" in done.stdout


def test_names_and_grids_are_those_of_the_method() -> None:
    assert NAMES == ABILITIES
    assert tuple(read_grid(DEFAULT_GRID)) == PAPER_GRID
    assert read_grid("0.1,0.4, 1") == [0.1, 0.4, 1.0]
