"""Data sets as files: one JSON object a line, with a `text`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_jsonl(path: Path, name: str) -> list[dict[str, Any]]:
    """The objects of a file; empty lines do not count.

    Args:
        path: of a UTF-8 file.
        name: the argument's, for messages.

    Raises:
        InputError: the file cannot be read or has no object, or a line is not one with a `text` that says something.
    """
    shown = f"{name} {str(path)!r}"
    try:
        content = path.expanduser().read_bytes().decode()
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}): give a readable file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{shown} is not UTF-8 (byte {error.start}): convert it, with iconv say") from error
    # not splitlines, which also splits at characters that JSON leaves in its strings
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f'{shown} is empty: give one JSON object with "text" a line')
    return [_object(shown, number, line) for number, line in lines]


def _object(shown: str, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{shown}, line {number} is not JSON ({error}): give one object a line") from error
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise InputError(f'{shown}, line {number} is no JSON object with "text": give one a line')
    return found


def fingerprint(objects: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of what the objects say, however the file spells it."""
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
