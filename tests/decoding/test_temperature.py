from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab import InputError
from trimtab.decoding.score_table import ScoreTable, size_class
from trimtab.decoding.temperature import (
    ABILITIES,
    choose_temperature,
    mutation_temperature,
    relative_scores,
    scale_logits,
)

GRID = [0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 1.9]
SHARES = hnp.arrays(np.float64, (5, 6), elements=st.floats(0.01, 1))
SCORES = hnp.arrays(np.float64, (6, 7), elements=st.floats(0.01, 30))


def record(**changes: Any) -> dict[str, Any]:
    """A small table as its file holds it."""
    scores = {ability: [3.0, 4.0, 1.0] for ability in ABILITIES}
    models = {name: {"parameters": size, "scores": scores} for name, size in (("small-1B", 1e9), ("Large-70B", 7e10))}
    return {"temperatures": [0.5, 1.0, 1.5], "models": models} | changes


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@given(SHARES, SCORES)
def test_expected_score_equals_numpy(shares: np.ndarray, scores: np.ndarray) -> None:
    """The chosen temperature has the best sum over abilities, and no lower one has a better."""
    probs = shares / shares.sum(1, keepdims=True)
    relative = scores / scores.max(1, keepdims=True)
    expected = np.array([[math.fsum(probs[row] * relative[:, t]) for t in range(7)] for row in range(5)])
    chosen = choose_temperature(torch.tensor(probs), relative_scores(torch.tensor(scores)), torch.tensor(GRID))
    for row, temperature in enumerate(chosen.tolist()):
        index = int(np.argmin(np.abs(np.array(GRID) - temperature)))
        assert expected[row, index] == pytest.approx(expected[row].max(), rel=1e-14)
        assert (expected[row, :index] < expected[row, index] * (1 + 1e-14)).all()


@given(SHARES, SCORES)
def test_likeliest_looks_at_one_ability(shares: np.ndarray, scores: np.ndarray) -> None:
    chosen = choose_temperature(torch.tensor(shares), torch.tensor(scores), torch.tensor(GRID), "likeliest")
    assert chosen.tolist() == [pytest.approx(GRID[scores[row.argmax()].argmax()]) for row in shares]


@given(SHARES, SCORES)
def test_rows_do_not_depend_on_each_other(shares: np.ndarray, scores: np.ndarray) -> None:
    probs, table, grid = torch.tensor(shares), torch.tensor(scores), torch.tensor(GRID)
    together = choose_temperature(probs, table, grid)
    assert torch.equal(together, torch.cat([choose_temperature(row[None], table, grid) for row in probs]))


def test_the_two_rules_differ_between_two_abilities() -> None:
    """The likeliest ability is served by the first temperature, the other two, likelier together, by the second."""
    scores = torch.tensor([[1.0, 0.2], [0.2, 1.0], [0.2, 1.0]])
    probs, grid = torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([0.1, 1.0], dtype=torch.float64)
    assert choose_temperature(probs, scores, grid, "likeliest").tolist() == [0.1]
    assert choose_temperature(probs, scores, grid, "expected").tolist() == [1.0]


def test_of_equal_scores_the_lowest_temperature() -> None:
    grid = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)
    assert choose_temperature(torch.ones(1, 1), torch.tensor([[1.0, 2.0, 2.0]]), grid).tolist() == [0.4]


def test_scaling_divides_each_row_and_leaves_its_argument_alone() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    scaled = scale_logits(logits, torch.tensor([0.1, 1.0, 1.9], dtype=torch.float64))
    for row, temperature in enumerate((0.1, 1.0, 1.9)):
        assert torch.equal(scaled[row], logits[row] / temperature)
    assert torch.equal(logits, before)
    assert scaled.dtype == logits.dtype


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([4.0, 5, 5, 4, 2.6, 2.4, 0], 1.6),
        ([4.0, 5, 5, 4, 2.5, 2.5, 2.5], math.inf),  # half of the best is not under it
        ([1.0, 1, 1, 1, 9, 0.6, 0.4], 1.9),  # what is best above 1 does not count
        ([5.0, 5, 2, 5, 5, 5, 5], 0.7),
    ],
)
def test_mutation_temperature_is_the_first_under_half(scores: list[float], expected: float) -> None:
    grid = torch.tensor(GRID, dtype=torch.float64)
    assert mutation_temperature(torch.tensor([scores]), grid).tolist() == [expected]


def test_mutation_temperature_rises_with_model_size() -> None:
    """The paper's finding, by trimtab's definition, on its own table."""
    table = ScoreTable.read()
    small, large = (mutation_temperature(table.relative(size), table.grid) for size in (2e9, 7e10))
    assert (large >= small).all()
    assert small[ABILITIES.index("IF")] == 1.6
    assert large.isinf().all()


def test_default_table_holds_the_measured_values() -> None:
    table = ScoreTable.read()
    assert table.grid.tolist() == GRID
    assert len(table.scores) == 12
    assert table.scores["Meta-Llama-3-8B-Instruct"][ABILITIES.index("MT"), 5] == 0.683
    assert table.scores["Llama-3.2-1B-Instruct"][ABILITIES.index("IF")].tolist()[3:] == [0.606, 0.246, 0.042, 0.016]


def test_a_size_takes_the_mean_of_its_class_after_normalising() -> None:
    table = ScoreTable.read()
    members = ["Llama-2-70b-chat-hf", "Meta-Llama-3-70B-Instruct", "Mixtral-8x7B-Instruct-v0.1"]
    rows = [table.scores[name].numpy() for name in members]
    reference = np.mean([row / row.max(1, keepdims=True) for row in rows], axis=0)
    assert torch.allclose(table.relative(6.5e10), torch.tensor(reference), rtol=1e-14, atol=0)


def test_a_name_takes_its_own_rows_with_or_without_a_path() -> None:
    table = ScoreTable.read()
    own = relative_scores(table.scores["Llama-3.2-1B-Instruct"])
    assert torch.equal(table.relative("Llama-3.2-1B-Instruct"), own)
    assert torch.equal(table.relative("meta-llama/llama-3.2-1b-instruct"), own)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [(1.35e8, "1-4B"), (4.8e9, "1-4B"), (5e9, "6-13B"), (2.2e10, "6-13B"), (2.4e10, "40-80B"), (1e12, "40-80B")],
)
def test_sizes_between_classes_go_to_the_nearest(parameters: float, expected: str) -> None:
    assert size_class(parameters) == expected


@pytest.mark.parametrize("model", ["gpt-9", 0, -1.0, math.nan, math.inf])
def test_a_model_that_nothing_is_known_of_is_refused(model: str | float) -> None:
    with pytest.raises(InputError, match=r"model is .*give"):
        ScoreTable.read().relative(model)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'Qwen2\.5-3B-Instruct'"):
        ScoreTable.read().relative("Qwen2.5-3B-Instuct")


def test_a_class_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model of class 6-13B"):
        ScoreTable.read(write(tmp_path / "t.json", record())).relative(7e9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no table of scores"),
        (record(models={}), "holds no models"),
        (record(temperatures=[1.0, 0.5, 1.5]), "ascending"),
        (record(temperatures=[0.0, 0.5, 1.5]), "positive"),
        (record(temperatures=[0.5, 1.0]), "small-1B needs 2 scores"),
        (record(models={"a": {"parameters": 1e9, "scores": {}}}), "KeyError"),
        (
            record(models={"a": {"parameters": -1, "scores": record()["models"]["small-1B"]["scores"]}}),
            "positive number",
        ),
        (record(models={"a": {"parameters": 1e9, "scores": {k: [0, 0, 0] for k in ABILITIES}}}), "all zero"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoreTable.read(write(tmp_path / "t.json", content)).relative(1e9)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        ScoreTable.read(tmp_path / "none.json")
