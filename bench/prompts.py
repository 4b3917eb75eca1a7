"""Prompts of a benchmark: read from JSONL, chosen evenly over their groups, turned into token ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bench.jsonl import parse_object
from trimtab import InputError

MT_BENCH = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})
"""Categories that Spec-Bench reports as one task, MT-Bench."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request.

    Attributes:
        id: as the file names it, else its line number.
        group: the task it is reported under.
        text: what the user says; of a conversation the first turn.
    """

    id: str
    group: str
    text: str


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a JSONL file of Spec-Bench (`turns`), of plain prompts (`prompt`) or of GSM8K (`question`).

    Raises:
        InputError: the file cannot be read, or a line of it is not such a record; the message has its number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts file {str(path)!r} cannot be read: {error}") from error
    prompts = [
        _prompt(line, f"{path}:{number}", number, path.stem) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise InputError(f"prompts file {str(path)!r} holds no prompts: give one JSON object a line")
    return prompts


def _prompt(line: str, where: str, number: int, stem: str) -> Prompt:
    record = parse_object(line, where)
    name = str(record.get("question_id", record.get("task_id", record.get("id", number))))
    if "turns" in record:
        turns = record["turns"]
        if not isinstance(turns, list) or not turns:
            raise InputError(f"{where}: 'turns' is {turns!r}, give a list with at least one text")
        return Prompt(name, _group(record, stem), _text(turns[0], "turns[0]", where))
    if "prompt" in record:
        return Prompt(name, _group(record, stem), _text(record["prompt"], "prompt", where))
    if "question" in record:
        return Prompt(name, _group(record, "gsm8k"), _text(record["question"], "question", where))
    raise InputError(f"{where}: has neither 'turns', 'prompt' nor 'question', only {sorted(record)}")


def _group(record: dict[str, Any], default: str) -> str:
    category = str(record.get("category", default))
    return "mt_bench" if category in MT_BENCH else category


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {name} is {value!r}, give a text that is not empty")
    return value


def take_evenly(prompts: Iterable[Prompt], limit: int | None) -> list[Prompt]:
    """`limit` prompts, as many of each group as can be, spread over each group, the groups in turn.

    In turn, so that a machine that slows down during the run slows all groups alike. Nothing is random: the same
    file and limit give the same prompts.

    Args:
        prompts: all prompts.
        limit: how many to take; None for all.

    Raises:
        InputError: `limit` is under 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}: give at least 1")
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.group, []).append(prompt)
    quota = dict.fromkeys(groups, 0)
    left = sum(map(len, groups.values())) if limit is None else limit
    while left and any(quota[name] < len(members) for name, members in groups.items()):
        for name, members in groups.items():
            if left and quota[name] < len(members):
                quota[name] += 1
                left -= 1
    chosen = {
        name: [members[i * len(members) // quota[name]] for i in range(quota[name])] for name, members in groups.items()
    }
    longest = max(map(len, chosen.values()), default=0)
    return [members[i] for i in range(longest) for members in chosen.values() if i < len(members)]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a user's message, in the tokenizer's chat template if it has one."""
    if tokenizer.chat_template:
        message = [{"role": "user", "content": text}]
        encoded = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    else:
        encoded = tokenizer(text)
    return list(encoded["input_ids"])
