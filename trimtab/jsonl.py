"""Lines of JSON."""

from __future__ import annotations

import json
from typing import Any

from .errors import InputError


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        InputError: it is none; the message begins with `where`.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: a {type(record).__name__}, not a JSON object")
    return record
