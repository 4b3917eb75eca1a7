"""What a comparison shows while it runs and when it has run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from .records import Comparison, Figure, Record, Sweep

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNITS = {
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "first_token_seconds": ("first token, ms", "{:.0f}"),
    "seconds_per_token": ("later tokens, ms each", "{:.1f}"),
    "tokens": ("tokens", "{:.0f}"),
    "accuracy": ("accuracy, %", "{:.1f}"),
    "agreement": ("text as A's, %", "{:.1f}"),
}
_SCALE = {"first_token_seconds": 1000, "seconds_per_token": 1000, "accuracy": 100, "agreement": 100}


class Running:
    """Sides' figures so far, and a bar, on stderr where that is a terminal."""

    def __init__(self, sides: Sequence[str]) -> None:
        self._tokens = dict.fromkeys(sides, 0)
        self._seconds = dict.fromkeys(sides, 0.0)
        self._right: dict[str, list[float]] = {side: [] for side in sides}
        self._failed = dict.fromkeys(sides, 0)
        self._done = 0
        self._bar: Any = None

    @contextmanager
    def bar(self, count: int) -> Iterator[Self]:
        """Show it while the records come."""
        import sys

        from tqdm import tqdm

        with tqdm(total=count, initial=self._done, file=sys.stderr, disable=None, unit="decode", leave=False) as bar:
            self._bar = bar
            try:
                yield self
            finally:
                self._bar = None

    def see(self, record: Record) -> None:
        """Take in one more."""
        self._done += 1
        if record.error is None:
            self._tokens[record.side] += record.tokens
            self._seconds[record.side] += record.seconds
            if record.right is not None:
                self._right[record.side].append(record.right)
        else:
            self._failed[record.side] += 1
        if self._bar is not None:
            self._bar.set_postfix_str(self.line(), refresh=False)
            self._bar.update()

    def line(self) -> str:
        """Each side's speed, accuracy and failures."""
        parts = []
        for side, tokens in self._tokens.items():
            part = f"{side.upper()} {tokens / self._seconds[side]:.1f} tok/s" if tokens else f"{side.upper()} -"
            if right := self._right[side]:
                part += f", {100 * sum(right) / len(right):.0f}% right"
            if self._failed[side]:
                part += f", {self._failed[side]} failed"
            parts.append(part)
        return " | ".join(parts)


def show(comparison: Comparison, console: Console) -> None:
    """The set-ups, a table of the figures, one of the groups, and the verdict."""
    for side, setup in comparison.setups.items():
        where = "" if setup["engine"] == "transformers" else f" in {setup['engine']}"
        console.print(f"{side.upper()}: {setup['setup']}, {setup['model'] or 'its model'}{where}", markup=False)
    count = len(comparison.prompts)
    settings = comparison.settings
    task = f", task {settings['task']}" if settings["task"] else ""
    console.print(f"{count} prompts of {settings['prompts']}, up to {settings['max_new_tokens']} tokens{task}\n")
    if comparison.figures:
        console.print(table(comparison.figures))
    if comparison.groups:
        console.print(groups_table(comparison.groups))
    console.print()
    for sentence in comparison.verdict:
        console.print(sentence, markup=False, soft_wrap=True)


def show_sweep(sweep: Sweep, console: Console) -> None:
    """What was swept, a line for each point, and the verdict."""
    setup, settings = sweep.setup, sweep.settings
    task = f", task {settings['task']}" if settings["task"] else ""
    console.print(
        f"{setup['setup']}, {setup['model'] or 'its model'}; baseline {sweep.baseline['setup']}", markup=False
    )
    console.print(
        f"{len(sweep.prompts)} prompts of {settings['prompts']}, up to {settings['max_new_tokens']} tokens{task}\n"
    )
    made = _table("", "tokens/s", "speed", "95% interval", sweep.quality, "points", "frontier")
    first = {figure.name: figure for point in sweep.points[:1] for figure in point.figures}
    own = f"{first['tokens_per_second'].a:.1f}" if "tokens_per_second" in first else "-"
    quality = f"{100 * first[sweep.quality].a:.1f}%" if sweep.quality in first else "-"
    mark = {True: "*", False: ""}
    label = _with_failures("baseline", sweep.baseline["failures"])
    made.add_row(label, own, "", "", quality, "", mark[sweep.baseline["pareto"]])
    for point in sweep.points:
        found = {figure.name: figure for figure in point.figures}
        cells = ["-"] * 5
        if speed := found.get("tokens_per_second"):
            cells[:3] = f"{speed.b:.1f}", change(speed), interval(speed)
        if good := found.get(sweep.quality):
            cells[3:] = f"{100 * good.b:.1f}%", f"{100 * good.change:+.1f}"
        made.add_row(_with_failures(point.label, point.failures), *cells, mark[point.pareto])
    console.print(made)
    for sentence in sweep.verdict:
        console.print(sentence, markup=False, soft_wrap=True)


def _with_failures(label: str, count: int) -> str:
    return f"{label} ({count} failed)" if count else label


def table(found: Sequence[Figure]) -> Table:
    """One line a figure."""
    made = _table("", "A", "B", "B against A", "95% interval")
    for each in found:
        name, form = _UNITS[each.name]
        scale = _SCALE.get(each.name, 1)
        made.add_row(name, form.format(each.a * scale), form.format(each.b * scale), change(each), interval(each))
    return made


def groups_table(groups: dict[str, list[Figure]]) -> Table:
    """Speed, and accuracy or agreement, of each group."""
    made = _table("by group", "speed", "95% interval", "quality", "95% interval")
    for name, found in sorted(groups.items()):
        speed = next((each for each in found if each.name == "tokens_per_second"), None)
        quality = next((each for each in found if each.name in ("accuracy", "agreement")), None)
        if speed is None:
            continue
        last = ("", "") if quality is None else (change(quality), interval(quality))
        made.add_row(name, change(speed), interval(speed), *last)
    return made


def change(found: Figure) -> str:
    """B against A."""
    return f"{found.change:.2f}x" if found.kind == "ratio" else f"{100 * found.change:+.1f} points"


def interval(found: Figure) -> str:
    """Its bounds."""
    if found.low is None or found.high is None:
        return "too few prompts"
    if found.kind == "ratio":
        return f"{found.low:.2f} to {found.high:.2f}"
    return f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def _table(*names: str) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(names):
        # a long label breaks, a number never
        if place:
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, min_width=12, overflow="fold")
    return made
