"""From records to figures: paired by prompt, with intervals, and in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean

import numpy as np

from .bootstrap import Interval, mean, ratio
from .proportions import paired
from .records import Figure, Record, Side
from .sample_size import prompts_for_points, prompts_for_ratio, spread_of_log

FOUND = 0.05
"""The change, of speed or in points of accuracy, for which `advice` says how many prompts would find it."""


@dataclass(frozen=True, slots=True)
class Means:
    """What one side did on one prompt, mean over the rounds in which both sides did it."""

    tokens: float
    seconds: float
    first_token_seconds: float | None
    later_tokens: float
    right: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Paired:
    """Both sides on the prompts that both decoded.

    Attributes:
        ids: of the prompts.
        a: by prompt.
        b: by prompt, in the same order.
        left_out: prompts of which a round was left out because a side failed.
    """

    ids: list[str]
    a: list[Means]
    b: list[Means]
    left_out: int


def pair(records: Iterable[Record], a: str = "a", b: str = "b") -> Paired:
    """Match the records of two sides by prompt and round; a round in which one failed or is missing does not count."""
    found: dict[str, dict[int, dict[str, Record]]] = {}
    for record in records:
        if record.side in (a, b):
            found.setdefault(record.id, {}).setdefault(record.round, {})[record.side] = record
    matched = Paired([], [], [], 0)
    left_out = 0
    for name, rounds in found.items():
        whole = [sides for sides in rounds.values() if len(sides) == 2]
        good = [sides for sides in whole if all(record.error is None for record in sides.values())]
        left_out += len(good) < len(whole)
        if good:
            matched.ids.append(name)
            matched.a.append(_means([sides[a] for sides in good]))
            matched.b.append(_means([sides[b] for sides in good]))
    return replace(matched, left_out=left_out)


def _means(records: Sequence[Record]) -> Means:
    first = [record.first_token_seconds for record in records if record.first_token_seconds is not None]
    right = [record.right for record in records if record.right is not None]
    return Means(
        tokens=fmean(record.tokens for record in records),
        seconds=fmean(record.seconds for record in records),
        first_token_seconds=fmean(first) if len(first) == len(records) else None,
        later_tokens=fmean(record.tokens - 1 for record in records),
        right=fmean(right) if len(right) == len(records) else None,
        text=records[0].text,
    )


Pairs = Sequence[tuple[Means, Means]]


def figures(matched: Paired, *, agreement: bool) -> list[Figure]:
    """What can be said of two sides; nothing of what was not measured on any prompt.

    Args:
        matched: both sides by prompt.
        agreement: whether the texts of both sides should be compared, which says something of greedy decoding alone.
    """
    found = (figure(matched, name) for name in _FIGURES if agreement or name != "agreement")
    return [each for each in found if each is not None]


def figure(matched: Paired, name: str) -> Figure | None:
    """One of them; None where no prompt has it."""
    both = list(zip(matched.a, matched.b, strict=True))
    return _FIGURES[name](both) if both else None


def _speed(both: Pairs) -> Figure:
    tokens = [[side.tokens for side in sides] for sides in _sides(both)]
    seconds = [[side.seconds for side in sides] for sides in _sides(both)]
    interval = ratio([tokens[1], seconds[0]], [seconds[1], tokens[0]])
    rates = [sum(tokens[side]) / sum(seconds[side]) for side in (0, 1)]
    return _ratio_figure("tokens_per_second", rates, interval, "speed", ("faster", "slower"), "tokens per second")


def _begun(both: Pairs) -> Pairs:
    return [(a, b) for a, b in both if a.first_token_seconds is not None and b.first_token_seconds is not None]


def _first_token(both: Pairs) -> Figure | None:
    both = _begun(both)
    if not both:
        return None
    a, b = ([side.first_token_seconds or 0.0 for side in sides] for sides in _sides(both))
    return _ratio_figure(
        "first_token_seconds",
        [fmean(a), fmean(b)],
        ratio([b], [a]),
        "time to the first token",
        ("longer", "shorter"),
        "seconds",
    )


def _later_tokens(both: Pairs) -> Figure | None:
    both = [(a, b) for a, b in _begun(both) if a.later_tokens and b.later_tokens]
    if not both:
        return None
    (after_a, after_b), (tokens_a, tokens_b) = (
        [[side.seconds - (side.first_token_seconds or 0.0) for side in sides] for sides in _sides(both)],
        [[side.later_tokens for side in sides] for sides in _sides(both)],
    )
    rates = [sum(after_a) / sum(tokens_a), sum(after_b) / sum(tokens_b)]
    interval = ratio([after_b, tokens_a], [after_a, tokens_b])
    return _ratio_figure(
        "seconds_per_token", rates, interval, "time for each later token", ("longer", "shorter"), "seconds"
    )


def _tokens(both: Pairs) -> Figure:
    a, b = ([side.tokens for side in sides] for sides in _sides(both))
    return _ratio_figure(
        "tokens", [sum(a), sum(b)], ratio([b], [a]), "length of texts", ("longer", "shorter"), "tokens"
    )


def _sides(both: Pairs) -> tuple[list[Means], list[Means]]:
    return [a for a, _ in both], [b for _, b in both]


def _ratio_figure(
    name: str, values: Sequence[float], interval: Interval, what: str, words: tuple[str, str], unit: str
) -> Figure:
    value, low, high = interval
    if low is None or high is None:
        verdict = f"{what}: B's is {value:.2f}x A's on one prompt, which cannot say how much prompts differ"
    elif low <= 1 <= high:
        verdict = f"no difference in {what} shown: B's is {value:.2f}x A's, 95% interval {low:.2f} to {high:.2f}"
        if low == high:
            verdict = f"{what}: the same on every prompt"
    elif name == "tokens_per_second":
        word = words[0] if value > 1 else words[1]
        verdict = f"B is {word}: {value:.2f}x A's {unit}, 95% interval {low:.2f} to {high:.2f}"
    else:
        word = words[0] if value > 1 else words[1]
        verdict = f"{what}: {word} with B, {value:.2f}x A's, 95% interval {low:.2f} to {high:.2f}"
    return Figure(name, values[0], values[1], "ratio", value, low, high, verdict)


def _accuracy(both: Pairs) -> Figure | None:
    scored = _scores(both)
    if not scored:
        return None
    a, b = zip(*scored, strict=True)
    (value, low, high), p_value = paired(a, b)
    verdict = f"accuracy differs by {100 * value:+.1f} points"
    if low is not None and high is not None:
        shown = "" if not low <= 0 <= high else ": no difference shown"
        verdict += f", 95% interval {100 * low:+.1f} to {100 * high:+.1f} (p = {p_value:.2g}){shown}"
    return Figure("accuracy", fmean(a), fmean(b), "difference", value, low, high, verdict, p_value)


def _scores(both: Pairs) -> list[tuple[float, float]]:
    return [(a.right, b.right) for a, b in both if a.right is not None and b.right is not None]


def _agreement(both: Pairs) -> Figure:
    shares = [common_share(a.text, b.text) for a, b in both]
    value, low, high = mean(shares)
    if low == high == 1:  # the next text might still differ: the exact bound of a share that was seen to be 1
        low = 0.025 ** (1 / len(shares))
    same = sum(share == 1 for share in shares)
    verdict = f"B writes A's text on {same} of {len(shares)} prompts"
    if same < len(shares):
        verdict += f", and {value:.0%} of it before the first difference"
    bounds = (None if low is None else max(low, 0.0) - 1, None if high is None else min(high, 1.0) - 1)
    return Figure("agreement", 1.0, value, "difference", value - 1, *bounds, verdict)


_FIGURES: dict[str, Callable[[Pairs], Figure | None]] = {
    "tokens_per_second": _speed,
    "first_token_seconds": _first_token,
    "seconds_per_token": _later_tokens,
    "tokens": _tokens,
    "accuracy": _accuracy,
    "agreement": _agreement,
}


def common_share(a: str, b: str) -> float:
    """How much of the longer text both have before the first other character; 1 for the same texts."""
    longest = max(len(a), len(b))
    common = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return common / longest if longest else 1.0


def by_group(records: Iterable[Record], *, agreement: bool) -> dict[str, list[Figure]]:
    """Figures of each group of prompts, if there are several."""
    ordered = sorted(records, key=lambda record: record.group)
    groups = {name: list(members) for name, members in groupby(ordered, key=lambda record: record.group)}
    return {n: figures(pair(members), agreement=agreement) for n, members in groups.items()} if len(groups) > 1 else {}


def verdict(found: Sequence[Figure], matched: Paired, failures: Mapping[Side, int]) -> list[str]:
    """The sentences that come first: speed, quality, what failed, and how many prompts would tell more."""
    if not matched.ids:
        return ["nothing to compare: no prompt was decoded by both sides", *_failed(failures)]
    chosen = [figure for figure in found if figure.name in ("tokens_per_second", "accuracy", "agreement")]
    sentences = [figure.verdict for figure in chosen]
    if any(failures.values()):
        sentences += _failed(failures)
        sentences.append(f"left out of what is said above: {matched.left_out} prompts on which a side failed")
    return sentences + advice(found, matched)


def _failed(failures: Mapping[Side, int]) -> list[str]:
    return [f"{side.upper()} failed on {count} prompts" for side, count in failures.items() if count]


def advice(found: Sequence[Figure], matched: Paired, change: float = FOUND) -> list[str]:
    """For speed and accuracy whose interval neither excludes no change nor a change of `change`: prompts that would."""
    sentences = []
    for figure in found:
        if figure.low is None or figure.high is None:
            continue
        open_to = (1 / (1 + change), 1 + change) if figure.kind == "ratio" else (-change, change)
        none = 1.0 if figure.kind == "ratio" else 0.0
        undecided = figure.low <= none <= figure.high and (figure.low < open_to[0] or figure.high > open_to[1])
        if figure.name in ("tokens_per_second", "accuracy") and undecided:
            count = recommended_prompts(matched, figure.name, change)
            shown = f"{change:.0%} of speed" if figure.kind == "ratio" else f"{100 * change:.0f} points of accuracy"
            sentences.append(
                f"{len(matched.ids)} prompts are too few to tell {shown}: take about {count} "
                "(four of five such runs find it)"
            )
    return sentences


def recommended_prompts(matched: Paired, name: str, change: float = FOUND) -> int:
    """Prompts that find a change in at least four of five runs, from the spread between those that were measured.

    Args:
        matched: a pilot of at least two prompts.
        name: `tokens_per_second` or `accuracy`.
        change: 0.05 for 5% of speed, or for 5 points.
    """
    both = list(zip(matched.a, matched.b, strict=True))
    if name == "accuracy":
        scores = _scores(both)
        gained, lost = sum(x < y for x, y in scores), sum(x > y for x, y in scores)
        return prompts_for_points(gained, lost, len(scores), change)
    above = np.array([[b.tokens for _, b in both], [a.seconds for a, _ in both]])
    below = np.array([[b.seconds for _, b in both], [a.tokens for a, _ in both]])
    return prompts_for_ratio(spread_of_log(above, below), len(both), change)
