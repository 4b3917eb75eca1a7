"""What a JSONL file holds, and how a bad line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import InputError
from trimtab.jsonl import parse_object, read_lines, read_objects


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "one\u2028mo\x85re"}\r\n \n{"text": "two"}'.encode())
    shown = f"FILE {str(path)!r}, line "
    first, second = '{"text": "one\u2028mo\x85re"}', '{"text": "two"}'
    assert read_lines(path, "FILE") == [(1, f"{shown}1", first), (3, f"{shown}3", second)]
    assert [line.value["text"] for line in read_objects(path, "FILE")] == ["one\u2028mo\x85re", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n\n{"a"', r"^FILE '.*', line 3 is not JSON \(.*\): give one object a line$"),
        (b"[1]", "line 1 is no JSON object: give one object a line$"),
        (b"{}\n\xff", r"^FILE '.*' is not UTF-8 \(byte 3\)"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_objects(path, "FILE")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^FILE '.*' cannot be read .*No such file"):
        read_objects(tmp_path / "none", "FILE")


def test_the_remedy_is_the_callers() -> None:
    with pytest.raises(InputError, match=r"^here is no JSON object: restore it$"):
        parse_object(b"3", "here", remedy="restore it")
