"""Tasks with one right answer, made from templates: training and test items share no name of a person.

`extract` answers a question about given facts in one sentence, `record` writes a line of JSON from a sentence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal["extract", "record"]
TASKS: tuple[Task, ...] = get_args(Task)
Split = Literal["train", "test"]

_NAMES: dict[Split, str] = {
    "train": "Anna Ben Carla David Emma Frank Grace Henry Ivy Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor",
    "test": "Alice Bob Clara Dan Eva Fred Gina Hugo Iris John Lena Max Nina Oscar Peter Ruth Simon Tom Vera Will",
}
_CITIES = "Paris Rome Berlin Madrid Vienna Oslo Dublin Lisbon Athens Prague"
_PLACES = "bakery school bank hospital library factory museum theater bookshop garden"
_JOBS = "teacher nurse baker driver painter farmer lawyer singer"
END = "\n\n"
"""What follows a target in training."""


@dataclass(frozen=True)
class Item:
    """A prompt, the right continuation, and what of it is checked."""

    task: Task
    prompt: str
    target: str
    answer: str

    def right(self, written: str) -> bool:
        """Whether the first line that a model wrote after the prompt has the answer."""
        line = written.split("\n")[0].strip()
        return self.answer in line if self.task == "extract" else line == self.answer


def items(task: Task, count: int, split: Split, seed: int = 0) -> list[Item]:
    """`count` items, always the same for the same arguments."""
    rng = random.Random(f"{task}-{split}-{seed}")
    make = _extract if task == "extract" else _record
    return [make(rng, _NAMES[split].split()) for _ in range(count)]


def _extract(rng: random.Random, known: list[str]) -> Item:
    names, cities, places = (rng.sample(words, 3) for words in (known, _CITIES.split(), _PLACES.split()))
    asked = rng.randrange(3)
    if rng.random() < 0.5:
        facts = " ".join(f"{name} lives in {city}." for name, city in zip(names, cities, strict=True))
        question, answer, verb = f"Where does {names[asked]} live?", cities[asked], "lives in"
    else:
        facts = " ".join(f"{name} works in a {place}." for name, place in zip(names, places, strict=True))
        question, answer, verb = f"Where does {names[asked]} work?", places[asked], "works in a"
    return Item("extract", f"Q: {facts} {question}\nA:", f" {names[asked]} {verb} {answer}.", answer)


def _record(rng: random.Random, known: list[str]) -> Item:
    name, age, city, job = (
        rng.choice(known),
        rng.randint(18, 80),
        rng.choice(_CITIES.split()),
        rng.choice(_JOBS.split()),
    )
    said = rng.choice(
        [
            f"{name} is {age} years old, lives in {city} and works as a {job}.",
            f"{name}, a {age}-year-old {job}, lives in {city}.",
            f"The {job} {name} from {city} is {age}.",
        ]
    )
    answer = f'{{"name": "{name}", "age": {age}, "city": "{city}", "job": "{job}"}}'
    return Item("record", f"Text: {said}\nRecord:", f" {answer}", answer)
