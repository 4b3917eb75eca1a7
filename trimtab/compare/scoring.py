"""From the name of a task to prompts as it puts them, and to what an answer is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..errors import InputError
from ..scorers import SCORERS, Scorer, best_score, last_number, load_scorer
from ..tasks import arithmetic
from .prompts import Prompt

ARITHMETIC = ("gsm8k", "svamp")
"""Tasks with a wording of their own: the number after the last `Answer:` counts."""

NAMES = (*SCORERS, *ARITHMETIC)


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked and how it is judged.

    Attributes:
        name: of the scorer or task; None where nothing is right or wrong.
        prompts: as they are put.
        score: of a prompt and a text, from 0 to 1; None without a task.
    """

    name: str | None
    prompts: list[Prompt]
    score: Callable[[Prompt, str], float] | None


def choose_task(name: str | None, prompts: Sequence[Prompt]) -> Task:
    """The task of a run.

    Args:
        name: `gsm8k` or `svamp`; a scorer of `trimtab.scorers`, or `FILE.py:FUNCTION`; None for what the prompts say:
            a file of GSM8K or SVAMP is that task, other answers are compared as numbers where all are, else looked for
            in the text. Prompts without answers have no task.
        prompts: of the run.

    Raises:
        InputError: there is no such task, or a prompt has no answer.
    """
    if name is None:
        name = _implied(prompts)
        if name is None:
            return Task(None, list(prompts), None)
    scorer = None if name in ARITHMETIC else load_scorer(name)
    for prompt in prompts:
        if not prompt.answers:
            raise InputError(f"--task is {name!r}, and prompt {prompt.id!r} has no answer: give one, or no --task")
        if scorer is None and last_number(prompt.answers[0]) is None:
            raise InputError(f"--task is {name!r}, and the answer of prompt {prompt.id!r} has no number: mend it")
    if scorer is None:
        worded = [replace(prompt, text=arithmetic.ASKED.format(question=prompt.text.strip())) for prompt in prompts]
        return Task(name, worded, _right)
    return Task(name, list(prompts), partial(_scored, scorer))


def _implied(prompts: Sequence[Prompt]) -> str | None:
    if not all(prompt.answers for prompt in prompts):
        return None
    tasks = {prompt.task for prompt in prompts}
    if len(tasks) == 1 and None not in tasks:
        return tasks.pop()
    numbers = all(_is_number(answer) for prompt in prompts for answer in prompt.answers)
    return "number" if numbers else "contains"


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def _right(prompt: Prompt, text: str) -> float:
    expected = last_number(prompt.answers[0])
    assert expected is not None  # checked by choose_task
    return float(arithmetic.right(float(expected), text))


def _scored(scorer: Scorer, prompt: Prompt, text: str) -> float:
    return min(best_score(scorer, text, prompt.answers), 1.0)
