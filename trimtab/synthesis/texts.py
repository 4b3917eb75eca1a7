"""Data sets as files: one JSON object a line, with a `text`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..jsonl import read_objects


def read_texts(path: Path, name: str) -> list[dict[str, Any]]:
    """The objects of a file; empty lines do not count.

    Args:
        path: of a UTF-8 file.
        name: the argument's, for messages.

    Raises:
        InputError: the file cannot be read or has no object, or a line is not one with a `text`.
    """
    found = read_objects(path, name)
    if not found:
        raise InputError(f'{name} {str(path)!r} is empty: give one JSON object with "text" a line')
    for line in found:
        if not isinstance(line.value.get("text"), str):
            raise InputError(f'{line.where} is no JSON object with "text": give one a line')
    return [line.value for line in found]


def fingerprint(objects: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of what the objects say, however the file spells it."""
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
