"""A/B: two set-ups on the same prompts, and what may be said about the difference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from .figures import by_group, figure, figures, pair, verdict
from .records import SIDES, Comparison, Figure, Record, Side
from .run import Seen, Started, run
from .session import Settings, prompts_as_dict
from .setups import Setup

LEAST = 12
"""Prompts before `until` may end a run: of fewer, chance alone makes an interval narrow."""


def compare(
    a: Setup,
    b: Setup,
    settings: Settings,
    *,
    json_file: Path | None = None,
    seen: Seen = lambda record: None,
    started: Started = lambda count: nullcontext(),
) -> Comparison:
    """Measure both sides and compare them.

    Args:
        a: one side.
        b: the other.
        settings: of the run.
        json_file: whose journal keeps the records while they come; None keeps them in memory.
        seen: called with every record.
        started: called with the number of records to come; what it returns is entered while they do.

    Raises:
        InputError: something cannot be used; nothing was measured.
    """
    settings.check()
    sides: dict[str, Setup] = {"a": a, "b": b}
    task = settings.read()
    agreement = a.greedy and b.greedy and task.score is None
    found, records = run(
        sides,
        settings,
        task,
        settings.identity(task, sides),
        json_file=json_file,
        seen=seen,
        started=started,
        enough=lambda records: settings.until is not None and narrow(records, settings.until),
    )
    matched = pair(records)
    overall = figures(matched, agreement=agreement)
    failures: dict[Side, int] = {side: failed(records, side) for side in SIDES}
    return Comparison(
        setups={side: sides[side].as_dict() for side in SIDES},
        settings=settings.as_dict(task),
        provenance=found,
        prompts=prompts_as_dict(task.prompts),
        records=records,
        figures=overall,
        groups=by_group(records, agreement=agreement),
        verdict=verdict(overall, matched, failures),
        failures=failures,
    )


def failed(records: Sequence[Record], side: str) -> int:
    """Prompts on which a side failed in some round."""
    return len({record.id for record in records if record.side == side and record.error is not None})


def narrow(records: Sequence[Record], until: float) -> bool:
    """Whether the interval of the speed is narrow enough: half its width is at most that share of the ratio.

    It looks at the width alone and never at where the interval lies, so it ends no run because of what it shows.
    """
    matched = pair(records)
    if len(matched.ids) < LEAST:
        return False
    speed: Figure | None = figure(matched, "tokens_per_second")
    if speed is None or speed.low is None or speed.high is None:
        return False
    return (speed.high - speed.low) / 2 <= until * speed.change
