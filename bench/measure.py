"""Timing several ways to decode (arms) against each other: same prompts, one process, taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trimtab.compare.schedule import rotated


@dataclass(frozen=True, slots=True)
class Decoded:
    """What an arm made of one prompt: the ids after the prompt, and what the method says of itself."""

    ids: list[int]
    stats: dict[str, Any] = field(default_factory=dict)


Decode = Callable[[list[int]], Decoded]
"""From the token ids of a prompt to what is generated after it."""


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt ready to be decoded."""

    id: str
    group: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Row:
    """One arm on one prompt, once.

    Attributes:
        arm: which one.
        id: of the prompt.
        group: of the prompt.
        round: which time this prompt is run.
        turn: the arm's place in the order of this prompt.
        prompt_tokens: length of the prompt.
        new_tokens: ids after the prompt, the end-of-text token among them; counted the same way for every arm.
        seconds: by the clock, reading the prompt included.
        cpu_seconds: of the process, all threads.
        ids: the ids after the prompt.
        stats: what the method says of itself.
    """

    arm: str
    id: str
    group: str
    round: int
    turn: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    cpu_seconds: float
    ids: list[int]
    stats: dict[str, Any]


def alternate(
    arms: Mapping[str, Decode], tasks: Sequence[Task], *, rounds: int = 1, device: torch.device | None = None
) -> Iterator[Row]:
    """Run every arm on every task, all arms on one task before the next task.

    Taking turns at this grain is what makes the arms comparable on a machine that others use too: load that comes
    and goes meets all of them.

    Args:
        arms: what to run.
        tasks: what to run it on.
        rounds: how many times to go over all tasks.
        device: where the arms compute; its queue is emptied before each reading of the clock.
    """
    for number in range(rounds):
        for index, task in enumerate(tasks):
            for turn, name in enumerate(rotated(list(arms), index + number)):
                yield _timed(name, arms[name], task, number, turn, device)


def _timed(name: str, decode: Decode, task: Task, number: int, turn: int, device: torch.device | None) -> Row:
    _wait(device)
    cpu, start = time.process_time(), time.perf_counter()
    decoded = decode(task.ids)
    _wait(device)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Row(
        arm=name,
        id=task.id,
        group=task.group,
        round=number,
        turn=turn,
        prompt_tokens=len(task.ids),
        new_tokens=len(decoded.ids),
        seconds=seconds,
        cpu_seconds=cpu,
        ids=decoded.ids,
        stats=decoded.stats,
    )


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
