"""From what a prompt asks for to a temperature, for one model: a table's scores and the rule that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .score_table import ScoreTable
from .temperature import ABILITIES, choose_temperature

Rule = Literal["expected", "likeliest"]


class TemperatureRule:
    """The temperatures that a model's scores recommend.

    Args:
        model: whose scores decide: a name of the table, or a number of parameters, which takes the mean over the
            models of its size class (1-4B, 6-13B, 40-80B; the nearest by ratio).
        table: scores by model, ability and temperature, or a file of them; None is the paper's table.
        rule: `"expected"` takes the best score expected under all six abilities, `"likeliest"` (the paper's) the best
            score of the likeliest one.

    Raises:
        InputError: the table cannot be read or does not hold the model; there is no such rule.
    """

    def __init__(
        self, model: str | float, *, table: ScoreTable | str | Path | None = None, rule: Rule = "expected"
    ) -> None:
        if rule not in get_args(Rule):
            raise InputError(f"rule is {rule!r}: give one of {', '.join(get_args(Rule))}")
        if table is None:
            table = ScoreTable.read()
        elif not isinstance(table, ScoreTable):
            table = ScoreTable.read(table)
        self._grid, self._scores, self._rule = table.grid, table.relative(model), rule

    def choose(self, abilities: Tensor) -> Tensor:
        """`[rows, 6]` probabilities, in the order of `ABILITIES`, to `[rows]` float64 temperatures."""
        return choose_temperature(abilities, self._scores, self._grid, self._rule)

    def of_ability(self, ability: str) -> float:
        """The temperature of a prompt that is wholly of one ability.

        Raises:
            InputError: there is no such ability.
        """
        if ability not in ABILITIES:
            raise InputError(f"ability is {ability!r}: give one of {', '.join(ABILITIES)}")
        return float(self.choose(torch.eye(len(ABILITIES))[[ABILITIES.index(ability)]]))
