"""Measuring: turns, seeds, failures, and runs that are killed at any moment and go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compare.simulated import simulated
from trimtab.compare.ab import narrow
from trimtab.compare.engines import Generated
from trimtab.compare.figures import figure, pair
from trimtab.compare.journal import Journal
from trimtab.compare.measure import measure, prompt_seed
from trimtab.compare.prompts import Prompt
from trimtab.compare.records import Record
from trimtab.compare.schedule import rotated, turns
from trimtab.errors import InputError

PROMPTS = [Prompt(f"p{index}", "all", f"prompt {index}", ("1",)) for index in range(5)]
SETTINGS = {"max_new_tokens": 8, "seed": 0}


class Clockwork:
    """A side that takes a known time, and fails on the prompts that it is told to."""

    def __init__(self, name: str, log: list[tuple[str, str, int]], fails: tuple[str, ...] = ()) -> None:
        self.name, self.log, self.fails = name, log, fails

    def decode(self, prompt: Prompt, seed: int, max_new_tokens: int) -> Generated:
        self.log.append((self.name, prompt.id, seed))
        if prompt.id in self.fails:
            raise RuntimeError("out of\nmemory")
        return Generated(text=f"{prompt.text}!", tokens=max_new_tokens, prompt_tokens=3, seconds=0.5)

    def close(self) -> None:
        pass


def run(
    journal: Journal,
    log: list[tuple[str, str, int]],
    *,
    rounds: int = 2,
    fails: tuple[str, ...] = (),
    score: Callable[[Prompt, str], float] | None = None,
    seen: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    return measure(
        ["a", "b"],
        PROMPTS,
        journal,
        ready=lambda: {"a": Clockwork("a", log), "b": Clockwork("b", log, fails)},
        rounds=rounds,
        max_new_tokens=8,
        seeds={"a": 7, "b": 7},
        score=score,
        seen=seen,
    )


def test_rotated_begins_with_another_item_each_turn() -> None:
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 3) == []


def test_sides_take_turns_and_so_does_who_begins() -> None:
    order = [[(turn.side, turn.first) for turn in each] for each in turns(("a", "b"), 3, 2)]
    ab, ba = [("a", True), ("b", False)], [("b", True), ("a", False)]
    assert order == [ab, ba, ab, ba, ab, ba]
    firsts = [each[0].side for each in turns(("x", "y", "z"), 3, 3)]
    assert sorted(firsts) == ["x"] * 3 + ["y"] * 3 + ["z"] * 3


def test_every_prompt_is_measured_by_both_with_one_seed() -> None:
    log: list[tuple[str, str, int]] = []
    records = run(Journal(None, SETTINGS), log)
    assert len(records) == 2 * 2 * len(PROMPTS)
    measured = log[4:]  # two prompts warm both sides up
    assert [(side, name) for side, name, _ in measured] == [(record.side, record.id) for record in records]
    seeds = {(record.id, record.round, record.side): seed for record, (*_, seed) in zip(records, measured, strict=True)}
    for prompt in PROMPTS:
        assert seeds[prompt.id, 0, "a"] == seeds[prompt.id, 0, "b"] == prompt_seed(7, prompt.id, 0)
        assert seeds[prompt.id, 0, "a"] != seeds[prompt.id, 1, "a"]
    assert all(record.first == (place % 2 == 0) for place, record in enumerate(records))


def test_a_side_that_fails_is_recorded_and_the_run_goes_on() -> None:
    records = run(Journal(None, SETTINGS), [], rounds=1, fails=("p1", "p4"))
    errors = {record.id: record.error for record in records if record.error}
    assert errors == {"p1": "RuntimeError: out of memory", "p4": "RuntimeError: out of memory"}
    assert len(records) == 10


def test_scores_are_kept() -> None:
    records = run(
        Journal(None, SETTINGS), [], rounds=1, score=lambda prompt, text: float(prompt.id in text or "0" in text)
    )
    assert {record.right for record in records} == {0.0, 1.0}


@pytest.mark.parametrize("kills", [(0,), (1,), (4, 9), (3, 3, 3), (19,)])
def test_a_killed_run_goes_on_with_nothing_lost_and_nothing_twice(tmp_path: Path, kills: tuple[int, ...]) -> None:
    path = tmp_path / "journal.jsonl"
    whole = run(Journal(None, SETTINGS), [])

    class Killed(BaseException):
        pass

    for count in kills:
        left = count

        def seen(record: Record) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        before = path.read_bytes() if path.exists() else b""
        with Journal(path, SETTINGS) as journal:
            left += len(journal.records)
            with pytest.raises(Killed):
                run(journal, [], seen=seen)
        assert path.read_bytes().startswith(before)
        with open(path, "ab") as file:
            file.write(b'{"id": "p1", "gro')  # torn by the kill
        before = path.read_bytes()
        # what is torn goes when the journal is opened again
        with Journal(path, SETTINGS) as journal:
            assert path.read_bytes() == before[: before.rindex(b"\n") + 1]
    log: list[tuple[str, str, int]] = []
    with Journal(path, SETTINGS) as journal:
        done = len(journal.records)
        records = run(journal, log)
    assert records == whole
    assert len(log) == (4 + len(whole) - done if done < len(whole) else 0)
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + len(whole)
    assert [Record.from_dict(json.loads(line)) for line in lines[1:]] == whole


def test_more_rounds_and_prompts_go_on_where_the_run_ended(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", SETTINGS) as journal:
        run(journal, [], rounds=1)
    log: list[tuple[str, str, int]] = []
    with Journal(tmp_path / "j", SETTINGS) as journal:
        assert run(journal, log) == run(Journal(None, SETTINGS), [])
    assert len(log) == 4 + 2 * len(PROMPTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1, "settings": {"max_new_tokens": 9, "seed": 0}}\n', "max_new_tokens is 8 and .* begun with 9"),
        (b'{"hello": 1}\n', "no journal of trimtab's"),
        (b"hello\n", "line 1 is not JSON"),
        (b'{"format": 1, "settings": {"max_new_tokens": 8, "seed": 0}}\n{"id": 1}\n', "line 2 is no record"),
    ],
)
def test_a_journal_of_something_else_is_refused_and_untouched(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path: Path) -> None:
    Journal(tmp_path / "j", SETTINGS).close()
    assert not (tmp_path / "j").exists()


def test_two_runs_cannot_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", SETTINGS), pytest.raises(InputError, match="written by another process"):
        Journal(tmp_path / "j", SETTINGS)


def test_until_ends_a_run_once_its_interval_is_narrow() -> None:
    records = simulated(1, 200)
    ended = next(count for count in range(2, 400, 2) if narrow(records[:count], 0.04))
    assert ended >= 24
    speed = figure(pair(records[:ended]), "tokens_per_second")
    assert speed is not None
    assert speed.low is not None
    assert speed.high is not None
    assert (speed.high - speed.low) / 2 <= 0.04 * speed.change
    assert not narrow(records[: ended - 2], 0.04)


@pytest.mark.slow
def test_until_shows_no_difference_where_there_is_none() -> None:
    shown = 0
    for seed in range(40):
        records = simulated(seed, 80)
        # asked every fourth prompt, to keep the test short; a run asks after each
        ended = next((count for count in range(24, 160, 8) if narrow(records[:count], 0.04)), 160)
        speed = figure(pair(records[:ended]), "tokens_per_second")
        assert speed is not None
        assert speed.low is not None
        assert speed.high is not None
        shown += not speed.low <= 1 <= speed.high
    assert shown <= 4
