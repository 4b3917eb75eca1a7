"""Prompts with right answers, from a file of JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError
from .jsonl import read_objects


class LabelledPrompt(NamedTuple):
    """A prompt and what is right.

    Attributes:
        prompt: its text, without chat template.
        answers: the right answers, at least one.
        ability: one of `trimtab.decoding.temperature.ABILITIES`; None where the file does not say.
    """

    prompt: str
    answers: tuple[str, ...]
    ability: str | None


def read_labelled_prompts(path: str | Path, abilities: tuple[str, ...]) -> list[LabelledPrompt]:
    """Objects with `prompt`, `answer` (a text, a number, or a list of them) and perhaps `ability`, one a line.

    Args:
        path: UTF-8; empty lines do not count.
        abilities: what `ability` may be.

    Raises:
        InputError: the file cannot be read, has no prompt, or a line is not such an object; names the line.
    """
    items = [_labelled(line.value, line.where, abilities) for line in read_objects(path, "data")]
    if not items:
        raise InputError(f'data {str(path)!r} has no prompt: give a JSON object with "prompt" and "answer" a line')
    return items


def _labelled(record: dict[str, Any], where: str, abilities: tuple[str, ...]) -> LabelledPrompt:
    for field in ("prompt", "answer"):
        if record.get(field) is None:
            raise InputError(f'{where} has no "{field}": give one')
    prompt, ability = record["prompt"], record.get("ability")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f'{where}: "prompt" is {prompt!r:.40}: give some text')
    if ability is not None and ability not in abilities:
        raise InputError(f'{where}: "ability" is {ability!r}: use one of {", ".join(abilities)}, or leave it out')
    given = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
    answers = tuple(_answer(value, where) for value in given)
    if not answers:
        raise InputError(f'{where}: "answer" is an empty list: give at least one right answer')
    return LabelledPrompt(prompt, answers, ability)


def _answer(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise InputError(f'{where}: "answer" is {value!r:.40}: give a text, a number, or a list of them')
    return str(value)
