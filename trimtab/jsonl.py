"""Files of lines, and lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from .errors import InputError

Value = TypeVar("Value")


class Line(NamedTuple, Generic[Value]):
    """A line of a file.

    Attributes:
        number: from 1.
        where: words that name file and line, for messages.
        value: what it says.
    """

    number: int
    where: str
    value: Value


def read_lines(path: str | Path, name: str) -> list[Line[str]]:
    """The lines of a UTF-8 file that are not empty.

    Args:
        path: of the file.
        name: what messages call it, an argument's say.

    Raises:
        InputError: the file cannot be read.
    """
    shown = f"{name} {str(path)!r}"
    try:
        content = Path(path).expanduser().read_bytes().decode()
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}): give a readable file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{shown} is not UTF-8 (byte {error.start}): convert it, with iconv say") from error
    # not splitlines, which also splits at characters that JSON leaves in its strings
    lines = content.replace("\r\n", "\n").split("\n")
    return [Line(number, f"{shown}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def read_objects(path: str | Path, name: str) -> list[Line[dict[str, Any]]]:
    """The JSON objects of a file, one a line; empty lines do not count.

    Raises:
        InputError: the file cannot be read, or a line is not an object; names the line.
    """
    return [Line(number, where, parse_object(text, where)) for number, where, text in read_lines(path, name)]


def parse_object(line: str | bytes, where: str, remedy: str = "give one object a line") -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        InputError: it is none; the message begins with `where` and ends with `remedy`.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}): {remedy}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is no JSON object: {remedy}")
    return record
