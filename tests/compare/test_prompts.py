"""Reading prompt files, and choosing from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.demo import PROMPTS
from trimtab import InputError
from trimtab.compare.prompts import Prompt, read_prompts, take_evenly


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "file.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_reads_all_three_kinds(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"question_id": 81, "category": "writing", "turns": ["first", "second"]}',
        "",
        '{"question_id": 200, "category": "rag", "turns": ["only"]}',
        '{"task_id": "HumanEval/0", "prompt": "def f():"}',
        '{"question": "How many?", "answer": "#### 3"}',
    )
    assert read_prompts(path) == [
        Prompt("81", "mt_bench", "first"),
        Prompt("200", "rag", "only"),
        Prompt("HumanEval/0", "file", "def f():"),
        Prompt("5", "gsm8k", "How many?", ("3",), task="gsm8k"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "cut', "not JSON"),
        ('["prompt"]', "no JSON object"),
        ('{"prompt": " "}', "prompt is ' '"),
        ('{"prompt": 3}', "prompt is 3"),
        ('{"turns": []}', "'turns' is []"),
        ('{"turns": [null]}', "turns[0] is None"),
        ('{"text": "x"}', "neither 'turns', 'messages', 'prompt' nor 'question'"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(written(tmp_path, '{"prompt": "good"}', "", line))
    assert "line 3" in str(caught.value)
    assert message in str(caught.value)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="holds no prompts"):
        read_prompts(written(tmp_path, "", ""))


def test_limit_is_shared_evenly_and_groups_take_turns() -> None:
    prompts = [
        Prompt(f"{group}{index}", group, "x") for group, n in (("a", 10), ("b", 2), ("c", 10)) for index in range(n)
    ]
    chosen = take_evenly(prompts, 8)
    assert Counter(prompt.group for prompt in chosen) == {"a": 3, "b": 2, "c": 3}
    assert [prompt.id for prompt in chosen] == ["a0", "b0", "c0", "a3", "b1", "c3", "a6", "c6"]
    assert take_evenly(prompts, 8) == chosen


def test_no_limit_takes_all_and_a_large_one_too() -> None:
    prompts = [Prompt(str(index), "ab"[index % 2], "x") for index in range(7)]
    assert len(take_evenly(prompts, None)) == len(take_evenly(prompts, 100)) == 7
    assert len({prompt.id for prompt in take_evenly(prompts, 5)}) == 5
    with pytest.raises(InputError, match="limit is 0"):
        take_evenly(prompts, 0)


def test_demo_prompts_can_be_read() -> None:
    prompts = read_prompts(PROMPTS)
    assert 4 <= len(prompts) <= 6
    assert "email" in {prompt.id for prompt in prompts}
