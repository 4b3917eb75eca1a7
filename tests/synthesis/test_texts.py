from __future__ import annotations

from pathlib import Path

import pytest

from trimtab import InputError
from trimtab.synthesis.texts import fingerprint, read_texts


def test_objects_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028more", "n": 1}\r\n\n{"text": "two"}', encoding="utf-8")
    found = read_texts(path, "--seeds")
    assert found == [{"text": "one\u2028more", "n": 1}, {"text": "two"}]
    assert fingerprint(found) == fingerprint([{"n": 1, "text": "one\u2028more"}, {"text": "two"}])
    assert fingerprint(found) != fingerprint(found[::-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"text": "x"}\n{"text"\n', "line 2 is not JSON"),
        (b'{"text": "x"}\n\n["text"]\n', "line 3 is no JSON object"),
        (b'{"prompt": "x"}\n', 'line 1 is no JSON object with "text"'),
        (b'{"text": 3}\n', 'line 1 is no JSON object with "text"'),
        (b"\xff\n", "is not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^--seeds .*{message}"):
        read_texts(path, "--seeds")
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path / "none", "--seeds")
