from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import InputError
from trimtab.synthesis.records import Record, RecordFile
from trimtab.synthesis.run_file import RunFile
from trimtab.synthesis.schedule import batches

MADE: dict[str, Any] = {"gamma": 0.2, "stop": ("\n",), "seeds": "abc"}


def record(index: int) -> Record:
    return Record(index, f"texté {index}\u2028\r\n" * (index % 4), "Prompt:", index % 3, {"k": 1.5}, [[1, 2]], 7, "eos")


def write(run: RunFile, size: int, stop: int | None = None) -> None:
    """What the command does, with texts that depend on nothing but their place."""
    done = len(run.records)
    for start, end in batches(run.counts, size):
        if start >= done and (stop is None or end <= stop):
            run.append([record(index) for index in range(start, end)])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 12), st.data())
def test_cut_anywhere_it_becomes_the_same_file(count: int, size: int, more: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.jsonl")
        with RunFile(path, MADE, count, size) as run:
            write(run, size)
        first = path.read_bytes()
        with RunFile(path, MADE, count + more, size) as run:
            write(run, size)
        whole = path.read_bytes()
        assert whole.startswith(first)
        assert whole == b"".join(record(index).line() for index in range(count + more))
        for _ in range(3):  # killed again and again
            if path.exists():
                path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, len(whole)))])
            with RunFile(path, MADE, count + more, size) as run:
                assert [each.index for each in run.records] == list(range(len(run.records)))
                assert len(run.records) in {0, *(end for _, end in batches(run.counts, size))}
                write(run, size, data.draw(st.integers(0, count + more)))
        with RunFile(path, MADE, count + more, size) as run:
            write(run, size)
        assert path.read_bytes() == whole
        assert json.loads(Path(f"{path}.run.json").read_bytes())["settings"] == MADE | {"stop": ["\n"]}


def test_batches_of_earlier_counts_stay(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for count in (6, 10):
        with RunFile(path, MADE, count, 4) as run:
            write(run, 4)
    assert run.counts == [6, 10]
    with RunFile(path, MADE, 20, 4) as run:
        write(run, 4, stop=16)
    with RunFile(path, MADE, 18, 4) as run:  # 20 was never reached
        assert (run.counts, len(run.records)) == ([6, 10, 18], 16)


@pytest.mark.parametrize("name", ["gamma", "stop", "seeds"])
def test_other_settings_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out.jsonl"
    with RunFile(path, MADE, 2, 2) as run:
        write(run, 2)
    before = path.read_bytes()
    path.write_bytes(before[:-5])  # torn, and still not touched
    with pytest.raises(InputError, match=f"^{name} is 'other' and .*out.jsonl' was begun with"):
        RunFile(path, MADE | {name: "other"}, 2, 2)
    assert path.read_bytes() == before[:-5]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for content, message in (
        ('{"text": "mine"}\n', "line 1 is no record of synthesize"),
        ("a text without a newline", "does not say how they were made"),
        (record(1).line().decode(), "line 1 has index 1, not 0"),
    ):
        path.write_bytes(content.encode())
        with pytest.raises(InputError, match=message):
            RunFile(path, MADE, 2, 2)
        assert path.read_bytes() == content.encode()
        assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_line_is_not_mistaken_for_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with RunFile(path, MADE, 3, 1) as run:
        write(run, 1)
    path.write_bytes(path.read_bytes().replace(b"Prompt:", b"Pro\nmpt", 1))
    with pytest.raises(InputError, match="line 1 is no record"):
        RunFile(path, MADE, 3, 1)


def test_a_smaller_count_is_refused(tmp_path: Path) -> None:
    with RunFile(tmp_path / "out.jsonl", MADE, 4, 4) as run:
        write(run, 4)
    with pytest.raises(InputError, match=r"count is 3 and .* has 4 texts: give at least 4"):
        RunFile(tmp_path / "out.jsonl", MADE, 3, 4)


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RunFile(tmp_path / "out.jsonl", MADE, 4, 4):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    with RunFile(tmp_path / "out.jsonl", MADE, 4, 4), pytest.raises(InputError, match="written by another process"):
        RecordFile(tmp_path / "out.jsonl")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "out.jsonl", tmp_path):
        with pytest.raises(InputError, match=r"^-o .* cannot be written"):
            RunFile(path, MADE, 4, 4)
