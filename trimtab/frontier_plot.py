"""The picture of `trimtab calibrate ead`: what each threshold costs, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .integrations.transformers.entropy_calibration import Calibration, FrontierPoint


def draw_frontier(found: Calibration, measure: str, path: Path) -> None:
    """Quality over cost, and speed over the large model's share; both models alone at the ends, the choice marked.

    Args:
        found: with `quality` of every point, and `large_alone`.
        measure: what the quality is, for the axis.
        path: its suffix is the format.
    """
    from matplotlib.figure import Figure

    points = [*found.frontier, *([found.large_alone] if found.large_alone else [])]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    panels = (
        (left, [p.cost for p in points], [p.quality or 0.0 for p in points]),
        (right, [p.large_share for p in points], [p.tokens / p.seconds for p in points]),
    )
    for axes, xs, ys in panels:
        line = sorted(zip(xs, ys, strict=True))
        axes.plot(*zip(*line, strict=True), color="0.75", zorder=1)
        axes.scatter(xs, ys, color="tab:blue", zorder=2)
        for point, x, y in zip(points, xs, ys, strict=True):
            if point.threshold == found.threshold:
                axes.scatter([x], [y], s=120, facecolors="none", edgecolors="tab:red", linewidths=1.8, zorder=3)
            below = y > (min(ys) + max(ys)) / 2
            axes.annotate(
                _label(point),
                (x, y),
                xytext=(0, -13 if below else 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.margins(0.12, 0.15)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_xlabel("cost, parameter-weighted tokens; the large model alone is 1")
    left.set_ylabel(measure)
    right.set_xlabel("share of the tokens that the large model wrote")
    right.set_ylabel("tokens per second")
    figure.suptitle("entropy-adaptive decoding: thresholds in bits, the chosen one circled", fontsize=11)
    figure.savefig(path, dpi=150)


def _label(point: FrontierPoint) -> str:
    ends = {float("inf"): "small alone", -float("inf"): "large alone"}
    return ends.get(point.threshold, f"{point.threshold:.2f}")
