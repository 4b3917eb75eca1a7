"""Accuracy against the share of tokens by the large model, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed to write a file
import matplotlib.pyplot as plt


def draw(arms: Mapping[str, Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Write a plot of the arms of `entropy_adaptive.py`: each threshold, both ends, and the line between the ends."""
    figure, axes = plt.subplots(figsize=(8, 5))
    shares = {arm: found["large_share"]["value"] for arm, found in arms.items()}
    ends = [arm for arm in ("small", "large") if arm in arms]
    axes.plot(
        [shares[arm] for arm in ends],
        [arms[arm]["accuracy"]["value"] for arm in ends],
        "--",
        color="#8c8c8c",
        label="each token by chance",
    )
    for arm, found in arms.items():
        accuracy, end = found["accuracy"], arm in ends
        axes.errorbar(
            shares[arm],
            accuracy["value"],
            [[accuracy["value"] - accuracy["low"]], [accuracy["high"] - accuracy["value"]]],
            fmt="s" if end else "o",
            color="#222222" if end else "#0072b2",
            elinewidth=0.8,
            capsize=2,
        )
        label = f"{arm} alone" if end else f"{arm} bits"
        axes.annotate(label, (shares[arm], accuracy["value"]), fontsize=8, xytext=(5, 4), textcoords="offset points")
    axes.set_xlabel("share of tokens written by the large model")
    axes.set_ylabel("accuracy, 95% intervals")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
