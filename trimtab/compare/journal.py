"""What has been measured, on the disk as soon as it is measured, so that a run can be killed and go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ..errors import InputError
from ..jsonl import parse_object
from ..line_file import LineFile, check_same
from .records import FORMAT, Record

SUFFIX = ".journal.jsonl"


class Journal:
    """A JSONL file: first a line with the settings, then a record a line.

    Args:
        path: of the file, made if it is missing; None keeps the records in memory alone.
        settings: JSON values; those of a run that goes on must be the same.

    Attributes:
        records: those measured so far, in their order.

    Raises:
        InputError: the file cannot be written, is another's, or was begun with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.records: list[Record] = []
        self._path = path
        self._file: LineFile | None = None
        if path is None:
            return
        try:
            self._file = LineFile(path)
            try:
                self._begin(path, json.loads(json.dumps(settings)))
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise InputError(
                f"journal {str(path)!r} cannot be written ({error.strerror}): give another file"
            ) from error

    def _begin(self, path: Path, settings: dict[str, Any]) -> None:
        assert self._file is not None
        if self._file.lines:
            begun = _object(self._file.lines[0], path, 1)
            if begun.get("format") != FORMAT or not isinstance(begun.get("settings"), dict):
                raise InputError(f"{str(path)!r} is no journal of trimtab's: choose another --json")
            check_same(settings, begun["settings"], path, "--json")
            for number, line in enumerate(self._file.lines[1:], 2):
                try:
                    self.records.append(Record.from_dict(_object(line, path, number)))
                except TypeError as error:
                    raise InputError(f"{str(path)!r}, line {number} is no record ({error}): restore it") from error
        # a torn line was written while its prompt was measured: it is measured again
        self._file.keep(len(self._file.lines))
        if not self._file.lines:
            self._file.append([_line({"format": FORMAT, "settings": settings})])

    def append(self, record: Record) -> None:
        """Keep a record; it is on the disk when this returns."""
        if self._file is not None:
            self._file.append([_line(record.as_dict())])
        self.records.append(record)

    def close(self) -> None:
        """Release the file; one of a run that measured nothing is removed."""
        if self._file is not None and self._path is not None:
            if not self.records:
                self._path.unlink(missing_ok=True)
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    return parse_object(line, f"{str(path)!r}, line {number}", remedy="restore it")
