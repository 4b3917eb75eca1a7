"""Tasks: which one a file suggests, and what its answers are worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.compare.prompts import Prompt, read_prompts
from trimtab.compare.scoring import choose_task
from trimtab.errors import InputError

DATA = Path(__file__).parents[2] / "bench" / "data"


@pytest.mark.parametrize(("file", "name"), [("gsm8k_train", "gsm8k"), ("svamp_200", "svamp"), ("spec_bench_60", None)])
def test_files_as_they_come(file: str, name: str | None) -> None:
    prompts = read_prompts(DATA / f"{file}.jsonl")
    task = choose_task(None, prompts)
    assert task.name == name
    if name is None:
        assert task.prompts == prompts
        return
    for prompt in task.prompts[:50]:
        assert task.score is not None
        assert "Answer:" in prompt.text
        assert task.score(prompt, f"1 + 1 = 2\nAnswer: {prompt.answers[0]}") == 1
        assert task.score(prompt, "Answer: 123456789") == 0


def test_answers_suggest_how_they_are_compared() -> None:
    numbers = [Prompt("1", "x", "?", ("5",)), Prompt("2", "x", "?", ("1,200",))]
    words = [*numbers, Prompt("3", "x", "?", ("Paris", "the capital"))]
    assert choose_task(None, numbers).name == "number"
    task = choose_task(None, words)
    assert task.name == "contains"
    assert task.score is not None
    assert task.score(words[2], "It is the capital.") == 1
    assert choose_task(None, [*numbers, Prompt("3", "x", "?")]).name is None


def test_ones_own_scorer(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def half(text, answer):\n    return 0.5\n")
    task = choose_task(f"{file}:half", [Prompt("1", "x", "?", ("5",))])
    assert task.score is not None
    assert task.score(task.prompts[0], "anything") == 0.5


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("numbr", Prompt("1", "x", "?", ("5",)), "did you mean number"),
        ("number", Prompt("q7", "x", "?"), "prompt 'q7' has no answer"),
        ("gsm8k", Prompt("q7", "x", "?", ("five",)), "answer of prompt 'q7' has no number"),
    ],
)
def test_refusals(name: str, prompt: Prompt, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_task(name, [prompt])
