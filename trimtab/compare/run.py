"""A run: every side made ready, every record on the disk as soon as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from ..command_support import import_quietly
from .engines import Decoder
from .journal import Journal
from .measure import measure
from .records import Record
from .scoring import Task
from .session import Settings, journal_path, machine, opened
from .setups import Setup

Seen = Callable[[Record], None]
Started = Callable[[int], AbstractContextManager[Any]]


def run(
    sides: Mapping[str, Setup],
    settings: Settings,
    task: Task,
    identity: Mapping[str, Any],
    *,
    json_file: Path | None,
    seen: Seen,
    started: Started,
    enough: Callable[[Sequence[Record]], bool] = lambda records: False,
) -> tuple[dict[str, Any], list[Record]]:
    """Measure all sides; a run that was stopped goes on, and one that is complete is read.

    Args:
        sides: by name, in their order.
        settings: of the run.
        task: what `settings.read` gave.
        identity: what must be the same for a run to go on; the machine is added to it.
        json_file: whose journal keeps the records while they come; None keeps them in memory.
        seen: called with every record.
        started: called with the number of records, once there is something to measure; what it returns is entered while
            that is done.
        enough: asked after each prompt; true ends the run.

    Returns:
        Where the records come from, and the records.

    Raises:
        InputError: something cannot be used; nothing was measured.
    """
    import_quietly(settings.threads)
    from .provenance import provenance

    found = provenance()
    with Journal(journal_path(json_file), {**identity, "machine": machine(found)}) as journal, ExitStack() as stack:

        def ready() -> Mapping[str, Decoder]:
            decoders = stack.enter_context(opened(sides, settings))
            stack.enter_context(started(len(sides) * len(task.prompts) * settings.rounds))
            return decoders

        records = measure(
            list(sides),
            task.prompts,
            journal,
            ready=ready,
            rounds=settings.rounds,
            max_new_tokens=settings.max_new_tokens,
            seeds={side: setup.sampling.get("seed", settings.seed) for side, setup in sides.items()},
            score=task.score,
            seen=seen,
            enough=enough,
        )
    return found, records
