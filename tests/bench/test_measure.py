"""Taking turns, and rows that count every arm alike."""

from __future__ import annotations

from bench.measure import Decoded, Task, alternate
from bench.quality import first_difference
from bench.report import summarize

TASKS = [Task(str(index), "even" if index % 2 == 0 else "odd", [1, 2, 3]) for index in range(6)]


def test_every_arm_runs_on_a_prompt_before_the_next_and_each_comes_first_equally_often() -> None:
    called: list[tuple[str, int]] = []
    arms = {name: lambda ids, name=name: called.append((name, len(ids))) or Decoded([7]) for name in "abc"}
    rows = list(alternate(arms, TASKS))
    assert [row.id for row in rows] == [task.id for task in TASKS for _ in arms]
    assert [(row.arm, 3) for row in rows] == called
    firsts = [row.arm for row in rows if row.turn == 0]
    assert {name: firsts.count(name) for name in arms} == {"a": 2, "b": 2, "c": 2}


def test_another_round_runs_a_prompt_in_another_order() -> None:
    rows = list(alternate({name: lambda ids: Decoded([7]) for name in "abc"}, TASKS, rounds=2))
    orders = [[row.arm for row in rows if row.id == "0" and row.round == number] for number in range(2)]
    assert orders == [list("abc"), list("bca")]


def test_rows_count_new_tokens_and_time() -> None:
    (row,) = alternate({"a": lambda ids: Decoded(ids * 2, {"row_passes": 3})}, TASKS[:1])
    assert (row.prompt_tokens, row.new_tokens, row.ids) == (3, 6, [1, 2, 3, 1, 2, 3])
    assert row.seconds >= 0
    assert row.stats == {"row_passes": 3}


def test_summary_by_group_holds_arms_against_each_other() -> None:
    def slow(ids: list[int]) -> Decoded:
        sum(range(200_000))
        return Decoded([1, 2])

    arms = {
        "plain": slow,
        "quantized": lambda ids: Decoded([1, 2], {"row_passes": 1, "row_tokens": 2}),
        "full": lambda ids: Decoded([1, 3]),
    }
    summary = summarize(list(alternate(arms, TASKS, rounds=3)))
    assert list(summary) == ["even", "odd", "all"]
    figures = summary["all"]["arms"]
    assert summary["all"]["prompts"] == 6
    assert figures["plain"]["new_tokens"] == 12
    assert figures["quantized"]["ratio_to_plain"]["value"] > 1
    assert figures["quantized"]["ratio_to_plain_median"] > 1
    assert figures["quantized"]["acceptance_length"] == 2
    assert figures["plain"]["acceptance_length"] is None
    assert figures["quantized"]["same_text_as_plain"] == {"prompts": 6, "of": 6}
    assert figures["full"]["same_text_as_plain"] == {"prompts": 0, "of": 6}
    assert "ratio_to_plain" not in figures["plain"]


def test_text_that_varies_between_rounds_is_counted() -> None:
    texts = iter([[1], [1], [1], [2]])
    summary = summarize(list(alternate({"plain": lambda ids: Decoded(next(texts))}, TASKS[:2], rounds=2)))
    assert summary["all"]["arms"]["plain"]["prompts_that_varied"] == 1


def test_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
