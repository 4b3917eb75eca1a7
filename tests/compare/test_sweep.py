"""Sweeps: what is varied, which points are on the frontier, and the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.compare.simulated import simulated
from trimtab.compare.figures import figures, pair
from trimtab.compare.records import Figure, Point, Sweep
from trimtab.compare.setups import Setup, parse_setup
from trimtab.compare.sweep import BASELINE, frontier, parse_over, points_of
from trimtab.compare.sweep_plot import draw_sweep
from trimtab.errors import InputError


def setup(text: str) -> Setup:
    return parse_setup(text, model="smollm2-135m", engine="transformers", sampling={}, whole=False)


def test_points_are_every_combination_in_order() -> None:
    base = setup("quantized:drafter=prompt_lookup")
    over = parse_over(["bits=4,8", "draft-length=2,5"], base)
    points = points_of(base, over)
    assert list(points) == [
        "bits=4,draft_length=2",
        "bits=4,draft_length=5",
        "bits=8,draft_length=2",
        "bits=8,draft_length=5",
    ]
    options, own = points["bits=8,draft_length=2"]
    assert options == {"bits": 8, "draft_length": 2}
    assert own.options == {"drafter": "prompt_lookup", "bits": 8, "draft_length": 2}


def test_a_needed_option_may_be_the_swept_one() -> None:
    base = setup("ead:small=low-bit")
    assert len(points_of(base, parse_over(["threshold=0.2,0.4"], base))) == 2


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["bits"], "give KEY=VALUE"),
        (["bit=4,8"], "with a key of mode, bits"),
        (["bits=4,eight"], "bits is 'eight': give a whole number"),
        (["bits=4,4"], "a value twice"),
        (["bits=4", "bits=8"], "names bits twice"),
        (["bits=4", "draft_length=2", "max_ngram=2"], "given 3 times"),
        (["bits=4,5"], "with bits=5: bits is 5: use one of 8, 4, 16"),
    ],
)
def test_what_cannot_be_swept_is_refused(over: list[str], message: str) -> None:
    base = setup("quantized")
    with pytest.raises(InputError) as caught:
        points_of(base, parse_over(over, base))
    assert message in str(caught.value)


def place(speed: float, quality: float) -> list[Figure]:
    return [
        Figure("tokens_per_second", 1, speed, "ratio", speed, speed * 0.9, speed * 1.1, ""),
        Figure("accuracy", 0.5, 0.5 + quality, "difference", quality, quality - 0.1, quality + 0.1, ""),
    ]


def test_frontier_keeps_what_nothing_else_beats() -> None:
    found = {
        "fast": place(4, -0.2),
        "better": place(1.5, 0.1),
        "beaten": place(1.4, 0.1),
        "slow": place(0.9, -0.1),
        "same as better": place(1.5, 0.1),
        "failed": [],
    }
    assert frontier(found, "accuracy") == {"fast", "better", "same as better"}
    assert frontier({"slow": place(0.5, -0.1)}, "accuracy") == {BASELINE}


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_draws(tmp_path: Path, suffix: str) -> None:
    records = [replace(each, side=BASELINE if each.side == "a" else "bits=8") for each in simulated(0, 10)]
    of_point = figures(pair(records, BASELINE, "bits=8"), agreement=False)
    baseline: dict[str, Any] = {**setup("none").as_dict(), "pareto": True, "failures": 0}
    points = [Point("bits=8", {"bits": 8}, of_point, True), Point("bits=4", {"bits": 4}, [], False, 10)]
    sweep = Sweep(setup("quantized").as_dict(), {}, {}, {}, baseline, points, records, "accuracy", [])
    path = tmp_path / f"sweep{suffix}"
    draw_sweep(sweep, path)
    assert path.stat().st_size > 5000
    assert sweep.as_dict()["kind"] == "sweep"
