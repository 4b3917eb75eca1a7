"""Diversity against perplexity of data sets, plain sampling as a curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed to write a file
import matplotlib.pyplot as plt

_KINDS = {
    "plain": ("plain sampling, by temperature", "#5a5a5a", "o-"),
    "plausible": ("the same among plausible tokens", "#cc79a7", "^-"),
    "paper": ("STEER as in the paper", "#e69f00", "s"),
    "balanced": ("STEER, balanced, plausible tokens", "#0072b2", "D"),
}
_PANELS = {"distinct_3": "different 3-grams / all", "pairwise_cosine": "mean cosine of two texts"}


def draw(figures: Mapping[str, Mapping[str, Any]], real: Mapping[str, Any], path: Path) -> None:
    """One panel for each measure of diversity; a star for the real texts."""
    figure, panels = plt.subplots(1, len(_PANELS), figsize=(12, 5))
    for axes, (measure, label) in zip(panels, _PANELS.items(), strict=True):
        for kind, (legend, colour, style) in _KINDS.items():
            points = {name: found for name, found in figures.items() if name.startswith(kind)}
            perplexities = [found["perplexity"] for found in points.values()]
            axes.plot(perplexities, [found[measure] for found in points.values()], style, color=colour, label=legend)
            for name, found in points.items():
                text = name.removeprefix(kind).strip().replace("gamma=", "g").replace("eta=", "e")
                axes.annotate(
                    text, (found["perplexity"], found[measure]), fontsize=7, xytext=(4, 3), textcoords="offset points"
                )
        axes.plot([real["perplexity"]], [real[measure]], "*", color="#009e73", markersize=14, label="real questions")
        axes.set_xscale("log")
        axes.set_xlabel("perplexity of Gemma 3 270M (log scale)")
        axes.set_ylabel(label)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].invert_yaxis()  # so that up is more diverse in both
    panels[0].legend(frameon=False, fontsize=8)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
