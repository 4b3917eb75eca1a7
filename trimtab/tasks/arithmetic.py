"""Word problems with a number for an answer: GSM8K (Cobbe et al. 2021) and SVAMP (Patel et al. 2021), MIT licence."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from .problem import Problem, records

ASKED = (
    "{question}\n\nThink step by step, in as few words as you can. "
    "End with one line that says 'Answer:' and the number, without a unit."
)
"""How a problem is put."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def gsm8k(path: Path) -> list[Problem]:
    """The problems of a file with `question` and `answer`, whose last number follows `####`."""
    return [
        _problem(f"gsm8k/{index}", record["question"], record["answer"].rpartition("####")[2])
        for index, record in enumerate(records(path))
    ]


def svamp(path: Path) -> list[Problem]:
    """The problems of a file with `ID`, `Body`, `Question` and `Answer`."""
    return [_problem(record["ID"], svamp_question(record), str(record["Answer"])) for record in records(path)]


def right(expected: float, written: str) -> bool:
    """Whether the number after the last `Answer:`, else the last number of all, is the expected one."""
    _, _, answer = written.rpartition("Answer:")
    found = number(answer, first=True) if "Answer:" in written else None
    if found is None:
        found = number(written, first=False)
    return found is not None and math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-6)


def number(text: str, *, first: bool) -> float | None:
    """The first or last number of a text, without its thousands' commas; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[0 if first else -1].replace(",", "")) if found else None


def _problem(name: str, question: str, answer: str) -> Problem:
    expected = number(answer, first=False)
    if expected is None:
        raise ValueError(f"{name}: the answer {answer!r} has no number")
    return Problem(name, ASKED.format(question=question.strip()), "", (), partial(right, expected))


def svamp_question(record: dict[str, Any]) -> str:
    """`Body` and `Question` of a record of SVAMP as one text."""
    body = record["Body"].strip()
    return f"{body}{'' if body.endswith(('.', '!', '?')) else '.'} {record['Question'].strip()}"
