"""A generated text, where it came from, and the file that keeps such records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..line_file import LineFile


@dataclass(frozen=True)
class Record:
    """One line of the data set.

    Attributes:
        index: position in the data set, from 0.
        text: what the expert wrote, without its stop string and white space around it.
        prompt: what it was asked.
        seed: which seed filled the template, from 0.
        fields: the seed's fields that the template names.
        negatives: for each negative prompt the positions of its texts in the pool: the different seed texts, then the
            different generated ones.
        tokens: tokens of the text, stop string included.
        finish: "eos", "stop" or "length".
    """

    index: int
    text: str
    prompt: str
    seed: int
    fields: dict[str, Any]
    negatives: list[list[int]]
    tokens: int
    finish: str

    def line(self) -> bytes:
        """As JSON, with the newline."""
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


_NAMES = {field.name for field in fields(Record)}


class RecordFile:
    """An append-only JSONL file of records, locked while it is open.

    Opening changes nothing; `keep` takes out a last line that a kill or a power cut left torn.

    Args:
        path: made if it is missing.

    Attributes:
        records: those in the file.

    Raises:
        InputError: another process writes to the file, or it holds something else than records in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = LineFile(path)
        try:
            self.records = parse_records(self._lines.lines, path)
        except BaseException:
            self.close()
            raise

    @property
    def torn(self) -> int:
        """Bytes after the last record."""
        return self._lines.torn

    def append(self, records: Sequence[Record]) -> None:
        """Write records; they are on the disk when this returns."""
        self._lines.append([record.line() for record in records])
        self.records += records

    def keep(self, count: int) -> None:
        """Drop the records from position `count` on, and what is torn."""
        self._lines.keep(count)
        del self.records[count:]

    def close(self) -> None:
        """Release the lock."""
        self._lines.close()


def parse_records(lines: Sequence[bytes], path: Path) -> list[Record]:
    """The records in a file's whole lines.

    Raises:
        InputError: a line is no record, or out of order.
    """
    found: list[Record] = []
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if record is None or record.index != len(found):
            wrong = "is no record of synthesize" if record is None else f"has index {record.index}, not {len(found)}"
            raise InputError(f"{str(path)!r}, line {number} {wrong}: restore it, or choose another -o")
        found.append(record)
    return found


def _parsed(line: bytes) -> Record | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return Record(**values) if isinstance(values, dict) and set(values) == _NAMES else None
