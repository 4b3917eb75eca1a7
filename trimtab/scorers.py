"""What a generated text is worth against a right answer: a number from 0, more is better.

A scorer takes the text and one right answer. Where a prompt has several right answers, the best score counts.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from .errors import InputError

Scorer = Callable[[str, str], float]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(text: str, answer: str) -> float:
    """1 where both are the same up to case, white space and punctuation at the ends."""
    return float(normalized(text) == normalized(answer))


def contains(text: str, answer: str) -> float:
    """1 where the answer stands in the text as whole words, up to case and white space."""
    return float(re.search(rf"(?<!\w){re.escape(normalized(answer))}(?!\w)", normalized(text)) is not None)


def number(text: str, answer: str) -> float:
    """1 where the last number of the text equals the last one of the answer, by value: `#### 1,200` is `1200.0`."""
    found = last_number(text)
    return float(found is not None and found == last_number(answer))


SCORERS: dict[str, Scorer] = {"exact": exact, "contains": contains, "number": number}


def normalized(text: str) -> str:
    """Unicode NFKC, case folded, white space as single spaces, no punctuation or symbols at either end."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    inside = [index for index, letter in enumerate(words) if unicodedata.category(letter)[0] not in "PSZ"]
    # a text of punctuation alone is compared as it is
    return words[inside[0] : inside[-1] + 1] if inside else words


def last_number(text: str) -> Decimal | None:
    """The last number in a text, commas taken for thousands separators; None where there is none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def best_score(scorer: Scorer, text: str, answers: Sequence[str]) -> float:
    """The score of a text by the right answer that it fits best.

    Raises:
        InputError: the scorer gives no finite number from 0.
    """
    scores = [scorer(text, answer) for answer in answers]
    for score in scores:
        if not isinstance(score, int | float) or not math.isfinite(score) or score < 0:
            raise InputError(f"the scorer gave {score!r} for {text[:40]!r}: let it return a number from 0")
    return float(max(scores))


def load_scorer(name: str) -> Scorer:
    """A scorer by its name in `SCORERS`, or `FILE.py:FUNCTION` of one's own.

    Raises:
        InputError: there is no such scorer, file or function; suggests the nearest name.
    """
    if name in SCORERS:
        return SCORERS[name]
    file, colon, function = name.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(name.lower(), SCORERS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"scorer is {name!r}: use one of {', '.join(SCORERS)}, or FILE.py:FUNCTION{hint}")
    path = Path(file).expanduser()
    spec = importlib.util.spec_from_file_location("trimtab_scorer", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"scorer is {name!r}, and {file!r} is no Python file: give FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"scorer is {name!r}, and {file} fails ({type(error).__name__}: {error}): mend it") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"scorer is {name!r}, and {file} has no function {function!r}: give FILE.py:FUNCTION")
    scorer: Scorer = found
    return scorer
