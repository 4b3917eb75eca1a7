"""Prompts of a measurement: read from JSONL, chosen evenly over their groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..jsonl import Line, read_objects
from ..tasks.arithmetic import svamp_question

MT_BENCH = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})
"""Categories that Spec-Bench reports as one task, MT-Bench."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request.

    Attributes:
        id: as the file names it, else its line number.
        group: the task it is reported under.
        text: what the user says; of a conversation of several turns the first, of chat messages the last.
        answers: the right ones, where the file has any.
        messages: `role` and `content` of each message of a chat; None for `text` alone.
        task: the one whose file this is, `gsm8k` or `svamp`; None for any other.
    """

    id: str
    group: str
    text: str
    answers: tuple[str, ...] = ()
    messages: tuple[Message, ...] | None = None
    task: str | None = None


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a JSONL file of Spec-Bench (`turns`), plain prompts (`prompt`), chats (`messages`), GSM8K or SVAMP.

    GSM8K has `question` and `answer`, SVAMP `Body`, `Question` and `Answer`; the others may have an `answer`: a text, a
    number, or a list of them.

    Raises:
        InputError: the file cannot be read, or a line of it is not such a record; the message has its number.
    """
    path = Path(path)
    prompts = [_prompt(line, path.stem) for line in read_objects(path, "prompts file")]
    if not prompts:
        raise InputError(f"prompts file {str(path)!r} holds no prompts: give one JSON object a line")
    return prompts


def _prompt(line: Line[dict[str, Any]], stem: str) -> Prompt:
    number, where, record = line
    name = str(next((record[key] for key in ("question_id", "task_id", "id", "ID") if key in record), number))
    group = _group(record, stem)
    if "turns" in record:
        turns = record["turns"]
        if not isinstance(turns, list) or not turns:
            raise InputError(f"{where}: 'turns' is {turns!r}, give a list with at least one text")
        return Prompt(name, group, _text(turns[0], "turns[0]", where), _answers(record, where))
    if "messages" in record:
        messages = _messages(record["messages"], where)
        return Prompt(name, group, messages[-1]["content"], _answers(record, where), messages)
    if "prompt" in record:
        return Prompt(name, group, _text(record["prompt"], "prompt", where), _answers(record, where))
    if "Body" in record and "Question" in record:
        for key in ("Body", "Question"):
            _text(record[key], key, where)
        found = _answers(record, where, "Answer")
        return Prompt(name, _group(record, "svamp"), svamp_question(record), found, task="svamp")
    if "question" in record:
        answers = tuple(answer.rpartition("####")[2].strip() for answer in _answers(record, where))
        text = _text(record["question"], "question", where)
        return Prompt(name, _group(record, "gsm8k"), text, answers, task="gsm8k")
    raise InputError(
        f"{where}: has neither 'turns', 'messages', 'prompt' nor 'question', only {', '.join(sorted(record))}"
    )


def _group(record: dict[str, Any], default: str) -> str:
    category = str(record.get("category", default))
    return "mt_bench" if category in MT_BENCH else category


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {name} is {value!r}, give a text that is not empty")
    return value


def _messages(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: 'messages' is {value!r:.60}, give a list with at least one message")
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"{where}: messages[{place}] is {message!r:.60}, give an object with 'role' and 'content'")
        _text(message.get("content"), f"messages[{place}]['content']", where)
    if value[-1]["role"] != "user":
        raise InputError(f"{where}: the last message is of {value[-1]['role']!r}, end with one of 'user'")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _answers(record: dict[str, Any], where: str, key: str = "answer") -> tuple[str, ...]:
    if record.get(key) is None:
        return ()
    given = record[key] if isinstance(record[key], list) else [record[key]]
    for value in given:
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise InputError(f"{where}: {key!r} is {value!r:.40}, give a text, a number, or a list of them")
    return tuple(map(str, given))


def check_ids(prompts: Iterable[Prompt]) -> None:
    """Refuse two prompts of one name, whose records could not be told apart.

    Raises:
        InputError: names it.
    """
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise InputError(f"prompts have the id {prompt.id!r} twice: give each one of its own")
        seen.add(prompt.id)


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
