"""Measured scores of models at every temperature and ability, and which of them hold for a given model."""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .temperature import ABILITIES, relative_scores

DEFAULT_TABLE = Path(__file__).parents[1] / "data" / "temperature_scores.json"
"""Twelve models from 1B to 70B of arXiv 2506.07295, quantised to 4 bits; licence in `temperature_scores.LICENSE`."""

SIZE_CLASSES = {"1-4B": (1e9, 4e9), "6-13B": (6e9, 13e9), "40-80B": (40e9, 80e9)}
"""The paper's classes of models, in parameters."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([MB])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores by model, ability and temperature.

    Attributes:
        grid: `[grid]` float64 ascending temperatures.
        scores: by model: `[abilities, grid]` float64, abilities in the order of `ABILITIES`, more is better.
        parameters: by model: how many it has.
    """

    grid: Tensor
    scores: dict[str, Tensor]
    parameters: dict[str, float]

    @classmethod
    def read(cls, path: str | Path = DEFAULT_TABLE) -> ScoreTable:
        """Read a table in the format of the default one.

        Raises:
            InputError: the file cannot be read or is no such table; the message says what is wrong where.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"table {str(path)!r} cannot be read: {error}") from error
        try:
            grid = torch.tensor(record["temperatures"], dtype=torch.float64)
            models = record["models"]
            scores = {name: _scores(model["scores"]) for name, model in models.items()}
            parameters = {name: float(model["parameters"]) for name, model in models.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"table {str(path)!r} is no table of scores ({type(error).__name__}: {error}): give temperatures, "
                f"and for each of models its parameters and scores by ability ({', '.join(ABILITIES)})"
            ) from error
        table = cls(grid, scores, parameters)
        table._check(str(path))
        return table

    def relative(self, model: str | float) -> Tensor:
        """Relative scores that hold for a model: its own rows, else the mean over its size class.

        Args:
            model: a name of the table, with or without a path before it, or a number of parameters.

        Returns:
            `[abilities, grid]` float64.

        Raises:
            InputError: a name that is not in the table, or a number of parameters that is not positive.
        """
        if isinstance(model, str):
            return relative_scores(self.scores[self._find(model)])
        like = size_class(model)
        members = [name for name, parameters in self.parameters.items() if size_class(parameters) == like]
        if not members:
            raise InputError(f"model is {model:g} parameters and the table has no model of class {like}: give a name")
        return torch.stack([relative_scores(self.scores[name]) for name in members]).mean(0)

    def holds(self, model: str | float) -> bool:
        """Whether a model has rows of its own; names as in `relative`, a number of parameters has none."""
        return isinstance(model, str) and _base_name(model) in map(str.lower, self.scores)

    def _find(self, model: str) -> str:
        wanted = _base_name(model)
        known = {name.lower(): name for name in self.scores}
        if wanted in known:
            return known[wanted]
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f", or did you mean {known[near[0]]!r}?" if near else ""
        raise InputError(f"model is {model!r}, which is not in the table: give its number of parameters{hint}")

    def _check(self, where: str) -> None:
        if not self.scores:
            raise InputError(f"table {where!r} holds no models: give at least one")
        grid = self.grid
        if grid.ndim != 1 or not bool((grid > 0).all() & grid.isfinite().all() & (grid.diff() > 0).all()):
            raise InputError(f"table {where!r}: temperatures are {grid.tolist()}: give positive ones, ascending")
        for name, scores in self.scores.items():
            if scores.shape != (len(ABILITIES), len(grid)):
                raise InputError(f"table {where!r}: {name} needs {len(grid)} scores by ability, one a temperature")
            if not bool(scores.isfinite().all() & (scores >= 0).all() & (scores.amax(-1) > 0).all()):
                raise InputError(f"table {where!r}: {name} has scores that are negative, not finite or all zero")
            size_class(self.parameters[name])


def size_class(parameters: float) -> str:
    """The paper's class of a model; sizes outside of all classes go to the nearest by ratio.

    Raises:
        InputError: the number is not positive and finite.
    """
    if not (math.isfinite(parameters) and parameters > 0):
        raise InputError(f"model is {parameters} parameters: give a positive number, 7e9 say")

    def distance(bounds: tuple[float, float]) -> float:
        return max(bounds[0] / parameters, parameters / bounds[1], 1.0)

    return min(SIZE_CLASSES, key=lambda name: distance(SIZE_CLASSES[name]))


def parameters(model: str) -> str | float:
    """A size such as 7B as a number of parameters; anything else is a name."""
    size = _SIZE.fullmatch(model.strip())
    return float(size[1]) * {"M": 1e6, "B": 1e9}[size[2].upper()] if size else model


def _base_name(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1].lower()


def _scores(by_ability: dict[str, Any]) -> Tensor:
    return torch.tensor([by_ability[ability] for ability in ABILITIES], dtype=torch.float64)
