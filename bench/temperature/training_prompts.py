"""Labelled prompts made from templates/: a file for each ability, pieces that several share in shared.toml.

`{slot}` stands for any of the slot's values, which may hold slots again, and `{3..9}` for a whole number. Prompts of
in-context learning are put together from tasks and formats instead.
"""

from __future__ import annotations

import random
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.decoding.temperature import ABILITIES

TEMPLATES = Path(__file__).parent / "templates"
_SLOT = re.compile(r"\{(?:(-?\d+)\.\.(-?\d+)|([a-z]+\d?))\}")


class Labelled(NamedTuple):
    """A prompt and what it asks for.

    Attributes:
        prompt: its text.
        ability: one of `ABILITIES`.
        group: the template or task it was made of, its source for held-out prompts.
    """

    prompt: str
    ability: str
    group: str


def training_prompts(per_ability: int, seed: int = 0) -> list[Labelled]:
    """`per_ability` prompts of each ability, all templates of an ability equally often."""
    rng = random.Random(seed)
    shared = _read("shared")
    made = []
    for ability in ABILITIES:
        source = _read(ability)
        for index in range(per_ability):
            if ability == "ICL":
                name, prompt = _worked_examples(source, rng)
            else:
                number = index % len(source["templates"])
                name = str(number)
                prompt = expand(source["templates"][number], shared | source["slots"], rng)
            made.append(Labelled(prompt, ability, f"{ability} {name}"))
    return made


def expand(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Fill a template in; a slot drawn twice may differ, names may not.

    Raises:
        KeyError: it has a slot that has no values.
    """
    fixed: dict[str, str] = {}

    def fill(found: re.Match[str]) -> str:
        low, high, name = found.groups()
        if name is None:
            return str(rng.randint(int(low), int(high)))
        if name in fixed:
            return fixed[name]
        value = expand(rng.choice(slots[name]), slots, rng)
        if name.startswith("name"):
            fixed[name] = value
        return value

    return _SLOT.sub(fill, template)


def _worked_examples(source: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """A task's name, and some of its pairs in one of the formats, the last without its answer."""
    task = rng.choice(source["tasks"])
    pattern, separator = rng.choice(source["formats"])
    pairs = rng.sample(task["pairs"], rng.randint(3, min(6, len(task["pairs"]))))
    shots = [pattern.replace("{x}", x).replace("{y}", y) for x, y in pairs[:-1]]
    last = pattern.replace("{x}", pairs[-1][0]).split("{y}")[0].rstrip()
    return task["name"], rng.choice(source["intros"]) + separator.join([*shots, last])


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((TEMPLATES / f"{name}.toml").read_text(encoding="utf-8"))
