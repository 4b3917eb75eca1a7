"""The picture of `trimtab sweep`: quality over speed, with intervals, and the frontier."""

from __future__ import annotations

from pathlib import Path

from .records import Figure, Sweep

_AXES = {
    "accuracy": "accuracy less the baseline's, points",
    "agreement": "text as the baseline's, less 100%, points",
}


def draw_sweep(sweep: Sweep, path: Path) -> None:
    """Write it.

    Args:
        sweep: with at least one point that has figures.
        path: its suffix is the format.
    """
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawing = Drawing(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    best = [(1.0, 0.0)] if sweep.baseline["pareto"] else []
    axes.scatter([1], [0], marker="s", color="black", zorder=3)
    axes.annotate("baseline", (1, 0), xytext=(6, -13), textcoords="offset points", fontsize=8)
    speeds = [1.0]
    for place, point in enumerate(sweep.points, 1):
        found = {figure.name: figure for figure in point.figures}
        if "tokens_per_second" not in found or sweep.quality not in found:
            continue
        speed, quality = found["tokens_per_second"], found[sweep.quality]
        x, y = speed.change, 100 * quality.change
        axes.errorbar(
            x,
            y,
            xerr=_bars(speed, 1),
            yerr=_bars(quality, 100),
            fmt="o",
            color="tab:blue" if point.pareto else "0.6",
            ecolor="0.8",
            zorder=2,
        )
        speeds.append(x)
        # points of one quality are common: their labels take turns in height
        axes.annotate(point.label, (x, y), xytext=(6, 6 + 11 * (place % 3)), textcoords="offset points", fontsize=8)
        if point.pareto:
            best.append((x, y))
    if len(best) > 1:
        axes.plot(*zip(*sorted(best), strict=True), "--", color="tab:blue", linewidth=1, zorder=1, label="frontier")
        axes.legend()
    # the interval of a few prompts may reach far: the picture keeps to the estimates
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / 1.5, max(speeds) * 1.5)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.15)
    axes.set_xlabel("speed against the baseline, logarithmic; bars are 95% intervals")
    axes.set_ylabel(_AXES[sweep.quality])
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{sweep.setup['setup']}, {sweep.setup['model']}, {len(sweep.prompts)} prompts", fontsize=11)
    drawing.savefig(path, dpi=150)


def _bars(figure: Figure, scale: float) -> list[list[float]] | None:
    if figure.low is None or figure.high is None:
        return None
    return [[scale * (figure.change - figure.low)], [scale * (figure.high - figure.change)]]
