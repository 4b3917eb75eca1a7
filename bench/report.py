"""From raw rows to figures per group, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from trimtab.compare.bootstrap import Interval, rate_ratio, share

from .measure import Row

ALL = "all"
RATIOS = {"plain": "ratio_to_plain", "hf_prompt_lookup": "ratio_to_hf_prompt_lookup", "full": "ratio_to_full"}
"""Arms that others are held against, and what the ratio is called."""


def summarize(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Figures of every arm, by group and over all prompts.

    Where a prompt was run several times its seconds are the median; its tokens are the same each time.
    """
    groups = {name: [row for row in rows if row.group == name] for name in dict.fromkeys(row.group for row in rows)}
    if len(groups) > 1:
        groups[ALL] = list(rows)
    return {name: _group(members) for name, members in groups.items()}


def _group(rows: Sequence[Row]) -> dict[str, Any]:
    # arms take turns to come first, so the first prompt of the first round has them in order only by chance
    arms = sorted({row.arm for row in rows}, key=[row.arm for row in rows].index)
    per_arm = {arm: _per_prompt([row for row in rows if row.arm == arm]) for arm in arms}
    result = {}
    for arm, runs in per_arm.items():
        figures = _figures(runs)
        for base, name in RATIOS.items():
            if base in per_arm and base != arm:
                figures[name] = _ratio(runs, per_arm[base]).as_dict()
                figures[f"{name}_median"] = _median_ratio(runs, per_arm[base])
        if "plain" in per_arm and arm != "plain":
            same = [run[0].ids == per_arm["plain"][key][0].ids for key, run in runs.items()]
            figures["same_text_as_plain"] = {"prompts": sum(same), "of": len(same)}
        result[arm] = figures
    return {"prompts": len(per_arm[arms[0]]), "arms": result}


def _per_prompt(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        runs.setdefault((row.group, row.id), []).append(row)
    return runs


Runs = Mapping[tuple[str, str], list[Row]]


def _figures(runs: Runs) -> dict[str, Any]:
    tokens, seconds = _tokens(runs), _seconds(runs)
    passes = sum(run[0].stats.get("row_passes", 0) for run in runs.values())
    emitted = sum(run[0].stats.get("row_tokens", 0) for run in runs.values())
    cpu = sum(median(row.cpu_seconds for row in run) for run in runs.values())
    return {
        "new_tokens": sum(tokens),
        "seconds": round(sum(seconds), 6),
        "tokens_per_second": sum(tokens) / sum(seconds),
        "tokens_per_second_median": median(t / s for t, s in zip(tokens, seconds, strict=True)),
        "cpu_ms_per_token": 1000 * cpu / max(sum(tokens), 1),
        "acceptance_length": emitted / passes if passes else None,
        # the same prompt must give the same text in every round
        "prompts_that_varied": sum(any(row.ids != run[0].ids for row in run) for run in runs.values()),
    }


def _ratio(runs: Runs, base: Runs) -> Interval:
    aligned = {key: base[key] for key in runs}
    return rate_ratio(_tokens(runs), _seconds(runs), _tokens(aligned), _seconds(aligned))


def _median_ratio(runs: Runs, base: Runs) -> float:
    """Of the prompts' own ratios: one stall of the machine does not move it, as it does a ratio of totals."""
    aligned = {key: base[key] for key in runs}
    rates = [[t / s for t, s in zip(_tokens(of), _seconds(of), strict=True)] for of in (runs, aligned)]
    return median(a / b for a, b in zip(*rates, strict=True))


def _tokens(runs: Runs) -> list[int]:
    return [run[0].new_tokens for run in runs.values()]


def _seconds(runs: Runs) -> list[float]:
    return [median(row.seconds for row in run) for run in runs.values()]


def summarize_agreement(counts: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
    """Shares by group of `(group, agreeing, positions)` of each prompt, and over all."""
    groups = {name: [count for count in counts if count[0] == name] for name in dict.fromkeys(c[0] for c in counts)}
    if len(groups) > 1:
        groups[ALL] = list(counts)
    return {
        name: {"positions": sum(c[2] for c in members)}
        | share([c[1] for c in members], [c[2] for c in members]).as_dict()
        for name, members in groups.items()
    }


def table(summary: Mapping[str, Any], arms: Sequence[str], title: str) -> Table:
    """One line for each group and arm; arms in the given order."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("group", no_wrap=True)
    shown.add_column("arm", no_wrap=True)
    for heading in ("tok/s", "median", "x plain", "x HF lookup", "x full", "accepted", "same text", "CPU ms/tok"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for group, figures in summary.items():
        present = [arm for arm in arms if arm in figures["arms"]]
        for index, arm in enumerate(present):
            row = figures["arms"][arm]
            same = row.get("same_text_as_plain")
            shown.add_row(
                f"{group} ({figures['prompts']})" if index == 0 else "",
                arm,
                f"{row['tokens_per_second']:.1f}",
                f"{row['tokens_per_second_median']:.1f}",
                *(interval_text(row.get(name)) for name in RATIOS.values()),
                f"{row['acceptance_length']:.2f}" if row["acceptance_length"] else "",
                f"{same['prompts']}/{same['of']}" if same else "",
                f"{row['cpu_ms_per_token']:.0f}",
                end_section=index == len(present) - 1,
            )
    return shown


def interval_text(interval: Mapping[str, float | None] | None, digits: int = 2) -> str:
    """`1.52 [1.40, 1.66]`; empty for None."""
    if interval is None or interval["value"] is None:
        return ""
    bounds = "" if interval["low"] is None else f" [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"
    return f"{interval['value']:.{digits}f}{bounds}"
