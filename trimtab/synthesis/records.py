"""A generated text, where it came from, and the file that keeps such records."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError


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
        torn: bytes after the last of them.

    Raises:
        InputError: another process writes to the file, or it holds something else than records in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{str(path)!r} is being written by another process: wait for it or stop it") from None
        try:
            self._file.seek(0)
            data = self._file.readall()
            self.records, self._ends = parse_records(data, path)
            self.torn = len(data) - self._end(len(self.records))
        except BaseException:
            self.close()
            raise

    def append(self, records: Sequence[Record]) -> None:
        """Write records; they are on the disk when this returns."""
        lines = [record.line() for record in records]
        data = b"".join(lines)
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())
        for record, line in zip(records, lines, strict=True):
            self._ends.append(self._end(len(self.records)) + len(line))
            self.records.append(record)

    def keep(self, count: int) -> None:
        """Drop the records from position `count` on, and what is torn."""
        if count < len(self.records) or self.torn:
            self._file.truncate(self._end(count))
            os.fsync(self._file.fileno())
            del self.records[count:], self._ends[count:]
            self.torn = 0

    def _end(self, count: int) -> int:
        return self._ends[count - 1] if count else 0

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


def parse_records(data: bytes, path: Path) -> tuple[list[Record], list[int]]:
    """The records in a file's bytes, and where each one ends.

    Raises:
        InputError: a whole line is no record, or out of order.
    """
    found: list[Record] = []
    ends: list[int] = []
    *lines, _ = data.split(b"\n")  # what follows the last newline is torn, or nothing
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if record is None or record.index != len(found):
            wrong = "is no record of synthesize" if record is None else f"has index {record.index}, not {len(found)}"
            raise InputError(f"{str(path)!r}, line {number} {wrong}: restore it, or choose another -o")
        found.append(record)
        ends.append((ends[-1] if ends else 0) + len(line) + 1)
    return found, ends


def _parsed(line: bytes) -> Record | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return Record(**values) if isinstance(values, dict) and set(values) == _NAMES else None
