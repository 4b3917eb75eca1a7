"""Sweep: one set-up at several settings beside a baseline, and which of them are worth having."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import InputError
from .ab import failed
from .figures import figures, pair
from .methods import METHOD_OPTIONS
from .records import Figure, Point, Sweep
from .run import Seen, Started, run
from .session import Settings, prompts_as_dict
from .setups import SAMPLING, Setup, convert

BASELINE = "baseline"
MOST = 2
"""Options that a sweep varies: of more, no table and no plot can be read."""


def parse_over(texts: Sequence[str], setup: Setup) -> dict[str, tuple[Any, ...]]:
    """`bits=4,8,16` as the values of each option.

    Raises:
        InputError: there are none or too many, an option is not one of the method's, or a value is none of its.
    """
    if not 1 <= len(texts) <= MOST:
        raise InputError(f"--over is given {len(texts)} times: give one option, or two")
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        known = [*METHOD_OPTIONS[setup.method], *SAMPLING]
        if not equals or name not in known:
            raise InputError(f"--over is {text!r}: give KEY=VALUE,VALUE,... with a key of {', '.join(known)}")
        if name in found:
            raise InputError(f"--over names {name} twice: leave one out")
        try:
            found[name] = tuple(convert(name, value.strip()) for value in values.split(","))
        except InputError as error:
            raise InputError(f"--over is {text!r}: {error}") from None
        if len(set(found[name])) < len(found[name]):
            raise InputError(f"--over is {text!r}, which has a value twice: leave one out")
    return found


def points_of(setup: Setup, over: Mapping[str, Sequence[Any]]) -> dict[str, tuple[dict[str, Any], Setup]]:
    """Options and set-up of each point by its label.

    Raises:
        InputError: a point's options cannot be used.
    """
    found = {}
    for values in itertools.product(*over.values()):
        options = dict(zip(over, values, strict=True))
        label = ",".join(f"{name}={value}" for name, value in options.items())
        try:
            found[label] = (options, setup.with_options(options, label))
        except InputError as error:
            raise InputError(f"set-up {setup.text!r} with {label}: {error}") from None
    return found


def sweep(
    setup: Setup,
    over: Mapping[str, Sequence[Any]],
    baseline: Setup,
    settings: Settings,
    *,
    json_file: Path | None = None,
    seen: Seen = lambda record: None,
    started: Started = lambda count: nullcontext(),
) -> Sweep:
    """Measure every point and the baseline in turn on each prompt.

    Args:
        setup: what is swept.
        over: values of each option, one or two.
        baseline: what points are compared with.
        settings: of the run; `until` is of no use here.
        json_file: whose journal keeps the records while they come; None keeps them in memory.
        seen: called with every record.
        started: called with the number of records to come; what it returns is entered while they do.

    Raises:
        InputError: something cannot be used; nothing was measured.
    """
    settings.check()
    points = points_of(setup, over)
    setups = {BASELINE: baseline, **{label: own for label, (_, own) in points.items()}}
    task = settings.read()
    if task.score is None and not all(each.greedy for each in setups.values()):
        raise InputError(
            "texts are sampled and the prompts have no answers: quality needs either answers or greedy decoding"
        )
    # a point more may be added to a sweep: only what points have in common must be the same
    identity = {**settings.identity(task, {BASELINE: baseline, "swept": setup}), "over": list(over)}
    found, records = run(setups, settings, task, identity, json_file=json_file, seen=seen, started=started)
    quality = "agreement" if task.score is None else "accuracy"
    overall = {label: figures(pair(records, BASELINE, label), agreement=quality == "agreement") for label in points}
    best = frontier(overall, quality)
    return Sweep(
        setup=setup.as_dict(),
        settings={**settings.as_dict(task), "over": {name: list(values) for name, values in over.items()}},
        provenance=found,
        prompts=prompts_as_dict(task.prompts),
        baseline={**baseline.as_dict(), "pareto": BASELINE in best, "failures": failed(records, BASELINE)},
        points=[
            Point(label, options, overall[label], label in best, failed(records, label))
            for label, (options, _) in points.items()
        ],
        records=records,
        quality=quality,
        verdict=_verdict(overall, best, quality),
    )


def frontier(found: Mapping[str, Sequence[Figure]], quality: str) -> set[str]:
    """The points, the baseline among them, than which no other is as fast and as good, and one of both more.

    By the estimates: points whose intervals overlap may change places in another run. Each is placed by its ratio and
    its difference to the baseline on their common prompts; the baseline is at 1 and 0.
    """
    places = {BASELINE: (1.0, 0.0)}
    for label, of_label in found.items():
        by_name = {figure.name: figure for figure in of_label}
        if "tokens_per_second" in by_name and quality in by_name:
            places[label] = (by_name["tokens_per_second"].change, by_name[quality].change)
    return {
        label
        for label, (fast, good) in places.items()
        if not any(
            other_fast >= fast and other_good >= good and (other_fast, other_good) != (fast, good)
            for other_fast, other_good in places.values()
        )
    }


def _verdict(found: Mapping[str, Sequence[Figure]], best: set[str], quality: str) -> list[str]:
    measure_of = "accuracy" if quality == "accuracy" else "agreement with the baseline's text"
    on_it = [label for label in (BASELINE, *found) if label in best]
    sentences = [f"on the frontier of speed and {measure_of}: {'; '.join(on_it)}"]
    for label in found:
        speed = next((figure for figure in found[label] if figure.name == "tokens_per_second"), None)
        if speed is None:
            sentences.append(f"{label}: no prompt was decoded by it and by the baseline")
    return sentences
