from __future__ import annotations

from pathlib import Path

import pytest

from trimtab import InputError
from trimtab.labelled_prompts import LabelledPrompt, read_labelled_prompts

ABILITIES = ("CR", "IF")


def test_prompts_answers_and_abilities_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "2+2?", "answer": 4, "ability": "CR"}\n\n{"prompt": "Hi", "answer": ["a", "b"], "id": 7}\n'
    )
    assert read_labelled_prompts(path, ABILITIES) == [
        LabelledPrompt("2+2?", ("4",), "CR"),
        LabelledPrompt("Hi", ("a", "b"), None),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"answer": "x"}', 'line 2 has no "prompt"'),
        ('{"prompt": "x"}', 'line 2 has no "answer"'),
        ('{"prompt": " ", "answer": "x"}', 'line 2: "prompt" is'),
        ('{"prompt": "x", "answer": ""}', "line 2: \"answer\" is ''"),
        ('{"prompt": "x", "answer": []}', "line 2.*empty list"),
        ('{"prompt": "x", "answer": true}', 'line 2: "answer" is True'),
        ('{"prompt": "x", "answer": "y", "ability": "MATH"}', "line 2: \"ability\" is 'MATH'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "answer": "y"}\n' + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        read_labelled_prompts(path, ABILITIES)
    assert "\n" not in str(caught.value)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(InputError, match="cannot be read"):
        read_labelled_prompts(path, ABILITIES)
    path.write_text("\n \n")
    with pytest.raises(InputError, match="has no prompt"):
        read_labelled_prompts(path, ABILITIES)
