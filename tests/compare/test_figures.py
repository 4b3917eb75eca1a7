"""Figures say what the data say: no difference where there is none, and a planted one with the advised prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.compare.simulated import simulated
from trimtab.compare.figures import advice, by_group, common_share, figure, figures, pair, recommended_prompts, verdict
from trimtab.compare.records import Figure, Record

RUNS = 40


def of(records: list[Record], name: str) -> Figure:
    found = figure(pair(records), name)
    assert found is not None
    return found


def differs(records: list[Record], name: str) -> bool:
    found = of(records, name)
    assert found.low is not None
    assert found.high is not None
    return not found.low <= (1 if found.kind == "ratio" else 0) <= found.high


# 5% of 40 are 2; more than 4 come up in one of twenty sets of seeds


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [6, 12, 40])
@pytest.mark.parametrize("name", ["tokens_per_second", "seconds_per_token", "accuracy"])
def test_a_side_against_itself_differs_as_seldom_as_the_level_says(name: str, prompts: int) -> None:
    assert sum(differs(simulated(seed, prompts), name) for seed in range(RUNS)) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("pilot", [12, 40])
def test_a_planted_slowdown_is_found_with_the_advised_prompts(pilot: int) -> None:
    found = 0
    for seed in range(RUNS):
        count = recommended_prompts(pair(simulated(seed, pilot, slowdown=0.05)), "tokens_per_second", 0.05)
        found += differs(simulated(10_000 + seed, count, slowdown=0.05), "tokens_per_second")
    assert found >= 0.8 * RUNS


@pytest.mark.slow
@pytest.mark.parametrize("pilot", [40, 120])
def test_a_planted_loss_of_accuracy_is_found_with_the_advised_prompts(pilot: int) -> None:
    found = 0
    for seed in range(RUNS):
        count = recommended_prompts(pair(simulated(seed, pilot, gained=0.03, lost=0.08)), "accuracy", 0.05)
        found += differs(simulated(20_000 + seed, count, gained=0.03, lost=0.08), "accuracy")
    assert found >= 0.8 * RUNS


def test_the_machines_drift_is_no_difference() -> None:
    # each decode takes 5% longer than the one before: the side that always came second would look slower
    records = simulated(0, 40)
    drifting = [replace(record, tokens=50, seconds=1.05**place) for place, record in enumerate(records)]
    assert not differs(drifting, "tokens_per_second")
    assert of(drifting, "tokens_per_second").change == pytest.approx(1, abs=0.05)


def test_figures_are_totals_and_their_ratio() -> None:
    records = [replace(record, tokens=10, seconds=2.0 if record.side == "a" else 1.0) for record in simulated(0, 5)]
    speed = of(records, "tokens_per_second")
    assert (speed.a, speed.b) == (5, 10)
    assert (speed.change, speed.low, speed.high) == pytest.approx((2, 2, 2))
    assert speed.verdict == "B is faster: 2.00x A's tokens per second, 95% interval 2.00 to 2.00"


def test_rounds_of_a_prompt_are_one_measurement() -> None:
    once = simulated(3, 20)
    twice = [*once, *(replace(record, round=1) for record in once)]
    assert figures(pair(twice), agreement=False) == [
        replace(each, a=each.a, b=each.b) for each in figures(pair(once), agreement=False)
    ]


def test_a_failed_side_is_counted_and_its_pair_left_out() -> None:
    records = simulated(0, 8)
    broken = [
        replace(record, error="out of memory", tokens=0, seconds=0.0)
        if (record.id, record.side) == ("3", "b")
        else record
        for record in records
    ]
    matched = pair(broken)
    assert "3" not in matched.ids
    assert matched.left_out == 1
    whole = [record for record in records if record.id != "3"]
    assert figures(matched, agreement=False) == figures(pair(whole), agreement=False)
    sentences = verdict(figures(matched, agreement=False), matched, {"a": 0, "b": 1})
    assert "B failed on 1 prompts" in sentences
    assert any(sentence.startswith("left out of what is said above: 1 prompts") for sentence in sentences)


def test_a_pair_that_is_not_complete_yet_is_not_a_failure() -> None:
    records = simulated(0, 4)[:-1]
    assert pair(records).left_out == 0
    assert len(pair(records).ids) == 3


def test_nothing_to_compare_is_said() -> None:
    records = [replace(record, error="gone") for record in simulated(0, 3)]
    assert figures(pair(records), agreement=True) == []
    assert verdict([], pair(records), {"a": 3, "b": 3})[0].startswith("nothing to compare")


def test_one_prompt_has_no_interval_and_says_so() -> None:
    speed = of(simulated(0, 1), "tokens_per_second")
    assert speed.low is None
    assert "one prompt" in speed.verdict


def test_what_was_not_measured_is_no_figure() -> None:
    records = [replace(record, right=None, first_token_seconds=None) for record in simulated(0, 6)]
    assert [each.name for each in figures(pair(records), agreement=False)] == ["tokens_per_second", "tokens"]


def test_accuracy_verdict_follows_the_exact_test() -> None:
    records = [
        replace(record, right=float(record.side == "a" or int(record.id) >= 6)) for record in simulated(0, 60)
    ]  # six prompts that A alone gets right: p = 1/32
    found = of(records, "accuracy")
    assert found.p_value == pytest.approx(1 / 32)
    assert found.high is not None
    assert found.high < 0
    fewer = [replace(record, right=1.0) if record.id == "0" else record for record in records]
    assert of(fewer, "accuracy").p_value == pytest.approx(1 / 16)
    assert "no difference shown" in of(fewer, "accuracy").verdict


def test_advice_comes_only_where_it_is_needed() -> None:
    few = pair(simulated(0, 8))
    assert any("too few to tell 5% of speed" in line for line in advice(figures(few, agreement=False), few))
    clear = pair(simulated(0, 60, slowdown=1.0))
    assert not any("speed" in line for line in advice(figures(clear, agreement=False), clear))


def test_groups_are_reported_if_there_are_several() -> None:
    records = simulated(0, 8)
    assert by_group(records, agreement=False) == {}
    grouped = [replace(record, group="ab"[int(record.id) % 2]) for record in records]
    assert set(by_group(grouped, agreement=False)) == {"a", "b"}


@pytest.mark.parametrize(
    ("a", "b", "share"), [("", "", 1), ("abcd", "abcd", 1), ("abcd", "abxd", 0.5), ("ab", "abcd", 0.5), ("a", "", 0)]
)
def test_common_share(a: str, b: str, share: float) -> None:
    assert common_share(a, b) == share


def test_texts_that_never_differed_might_differ_yet() -> None:
    records = [replace(record, text="same", right=None) for record in simulated(0, 12)]
    (found,) = [each for each in figures(pair(records), agreement=True) if each.name == "agreement"]
    assert (found.b, found.change, found.high) == (1, 0, 0)
    assert found.low == pytest.approx(0.025 ** (1 / 12) - 1)
    assert found.verdict == "B writes A's text on 12 of 12 prompts"
