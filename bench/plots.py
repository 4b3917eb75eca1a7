"""Bars of one ratio per group and arm, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed to write a file
import matplotlib.pyplot as plt

# Okabe and Ito's colours, told apart by the colour-blind; trimtab's arms are the saturated ones
_COLOURS = {
    "plain_static": "#c9c9c9",
    "hf_prompt_lookup": "#8c8c8c",
    "hf_gguf": "#5a5a5a",
    "full": "#56b4e9",
    "low_bit_plain": "#e69f00",
    "quantized": "#d55e00",
    "lossless": "#0072b2",
}
_LABELS = {
    "plain_static": "transformers, static cache",
    "hf_prompt_lookup": "transformers, prompt lookup",
    "hf_gguf": "transformers, packed GGUF",
    "full": "trimtab, full precision + drafts",
    "low_bit_plain": "trimtab, 8 bits, no drafts",
    "quantized": "trimtab quantized (8 bits + drafts)",
    "lossless": "trimtab lossless (text of full precision)",
}

_TEXT = {"plain_static": "black", "full": "black", "low_bit_plain": "black"}
_IN_BAR: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "rotation": 90}


def ratio_bars(
    summary: Mapping[str, Any], arms: Sequence[str], paths: Sequence[str | Path], *, title: str, subtitle: str
) -> None:
    """Write tokens/s over those of `plain`, one bar for each group and arm.

    An interval that goes beyond 1.4 of the highest bar leaves the picture at the top.

    Args:
        summary: of `report.summarize`.
        arms: in the order to draw; `plain` is the line at 1.
        paths: files to write; the suffix says the format.
        title: model and what is shown.
        subtitle: the machine and the settings.
    """
    drawn = [arm for arm in arms if arm != "plain"]
    groups = list(summary)
    width = 0.84 / max(len(drawn), 1)
    figure, axes = plt.subplots(figsize=(max(7.5, 1.6 + 0.27 * len(groups) * (len(drawn) + 1)), 5.2))
    top = highest = 1.0
    for index, arm in enumerate(drawn):
        for place, group in enumerate(groups):
            interval = summary[group]["arms"].get(arm, {}).get("ratio_to_plain")
            if interval is None:
                continue
            x = place + (index - (len(drawn) - 1) / 2) * width
            value, low, high = interval["value"], interval["low"], interval["high"]
            label = _LABELS.get(arm, arm) if place == 0 else None
            axes.bar(x, value, width * 0.92, color=_COLOURS.get(arm), label=label)
            if low is not None:
                axes.vlines(x, low, high, color="#222222", linewidth=1)
            # at the foot of the bar, where no interval and no line crosses it
            axes.text(x, 0.03, f"{value:.2f}", color=_TEXT.get(arm, "white"), **_IN_BAR)
            highest, top = max(highest, value), max(top, value, high or 0)
    axes.axhline(1, color="#222222", linewidth=1, linestyle="--", label="plain generate")
    axes.set_xticks(range(len(groups)), [f"{group}\n(n = {summary[group]['prompts']})" for group in groups])
    axes.set_xlim(-0.62, len(groups) - 0.4)
    axes.set_ylim(0, min(top * 1.05, highest * 1.4))
    axes.set_ylabel("tokens per second, relative to plain generate")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{title}\n", fontsize=12, fontweight="bold", loc="left")
    axes.text(0, 1.025, subtitle, fontsize=9, color="#444444", transform=axes.transAxes)
    figure.legend(loc="outside lower center", ncols=min(len(drawn) + 1, 4), frameon=False, fontsize=9)
    figure.set_layout_engine("constrained")
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    plt.close(figure)
