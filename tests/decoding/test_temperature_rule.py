from __future__ import annotations

import pytest
import torch

from trimtab import InputError
from trimtab.decoding.score_table import ScoreTable
from trimtab.decoding.temperature import ABILITIES
from trimtab.decoding.temperature_rule import TemperatureRule


def test_the_default_table_gives_the_temperatures_of_its_page() -> None:
    """docs/temperature.md, "The table"."""
    chosen = {
        2e9: [0.4, 0.7, 0.4, 0.7, 0.4, 0.4],
        7e9: [1.3, 1.0, 0.4, 0.4, 0.1, 0.1],
        70e9: [0.1, 1.3, 1.0, 1.0, 0.1, 0.1],
    }
    for size, temperatures in chosen.items():
        rule = TemperatureRule(size)
        assert [rule.of_ability(ability) for ability in ABILITIES] == temperatures
        assert rule.choose(torch.eye(6)).tolist() == temperatures


def test_the_rules_differ_between_two_abilities() -> None:
    """Hardly more creative than translating: the likeliest alone says 0.7."""
    shares = torch.tensor([[0.0, 0.51, 0.0, 0.0, 0.49, 0.0]])
    assert TemperatureRule(2e9, rule="likeliest").choose(shares).tolist() == [0.7]
    assert TemperatureRule(2e9).choose(shares).item() in ScoreTable.read().grid.tolist()


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match=r"ability is 'XX': give one of CR"):
        TemperatureRule(2e9).of_ability("XX")
    with pytest.raises(InputError, match=r"rule is 'best'"):
        TemperatureRule(2e9, rule="best")  # type: ignore[arg-type]


def test_a_table_knows_whom_it_holds() -> None:
    table = ScoreTable.read()
    name = next(iter(table.scores))
    assert table.holds(name)
    assert table.holds(f"some/where/{name.upper()}/")
    assert not table.holds("some/where/else")
    assert not table.holds(7e9)
