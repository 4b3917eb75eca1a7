"""HumanEval (Chen et al. 2021, MIT licence): write the body of a function, judged by its unit tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .problem import Problem, records
from .sandbox import passes

_ASKED = "Complete a Python function. Reply with one code block and nothing else."
_FENCE = "```"


def problems(path: Path) -> list[Problem]:
    """The problems of a file with `task_id`, `prompt`, `entry_point` and `test`."""
    return [
        Problem(
            record["task_id"],
            _ASKED,
            f"{_FENCE}python\n{record['prompt']}",
            (_FENCE,),
            partial(right, record),
        )
        for record in records(path)
    ]


def right(record: dict[str, Any], written: str) -> bool:
    """Whether the prompt and what was written after it, up to the end of the code block, pass the tests."""
    body = written.split(_FENCE)[0]
    return passes(f"{record['prompt']}{body}\n\n{record['test']}\n\ncheck({record['entry_point']})\n")
