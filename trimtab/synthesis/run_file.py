"""A data set on the disk with what made it, so that a run can be killed and go on, and cannot go on as another."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..errors import InputError
from ..line_file import check_same
from .records import Record, RecordFile
from .schedule import batches, whole_batches

SUFFIX = ".run.json"


class RunFile:
    """`out.jsonl` and, beside it, `out.jsonl.run.json`: the settings, and how many texts each run asked for.

    Opening repairs what a kill left: a torn line, and a batch of which only a part was written, whose texts would
    otherwise have to be written in other company. Both are generated again, as they were.

    Args:
        path: of the records; both files are made if they are missing.
        settings: JSON values; those of a run that goes on must be the same.
        count: texts wanted; a data set that is finished may be made larger.
        batch_size: texts of a batch.

    Attributes:
        counts: texts wanted by each run, rising, this one's last.
        dropped: bytes and records that the repair took out.

    Raises:
        InputError: the file cannot be written, is another's, holds more than `count` texts, or was begun with other
            settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], count: int, batch_size: int) -> None:
        self.path, self._sidecar = path, path.with_name(path.name + SUFFIX)
        try:
            self._records = RecordFile(path)
            try:
                self._begin(json.loads(json.dumps(settings)), count, batch_size)
            except BaseException:
                self._records.close()
                raise
        except OSError as error:
            raise InputError(f"-o {str(path)!r} cannot be written ({error.strerror}): give another file") from error

    def _begin(self, settings: dict[str, Any], count: int, batch_size: int) -> None:
        done, torn = len(self.records), self._records.torn
        self.counts = [count]
        if done or torn:  # whatever is in the file must be ours before anything is taken out
            begun = self._begun()
            check_same(settings, begun["settings"], self.path, "-o")
            if count < done:
                raise InputError(f"count is {count} and {str(self.path)!r} has {done} texts: give at least {done}")
            self._records.keep(whole_batches(batches(begun["counts"], batch_size), done))
            # a count that was not reached has ended no batch
            self.counts = sorted({*(each for each in begun["counts"] if each <= len(self.records)), count})
        self.dropped = (torn, done - len(self.records))
        self._write({"settings": settings, "counts": self.counts})

    def _begun(self) -> dict[str, Any]:
        try:
            found = json.loads(self._sidecar.read_bytes())
            counts, settings = found["counts"], found["settings"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{str(self.path)!r} has texts and {self._sidecar.name} does not say how they were made "
                f"({type(error).__name__}): restore it, or choose another -o"
            ) from error
        return {"counts": counts, "settings": settings}

    def _write(self, content: dict[str, Any]) -> None:
        """Replace the sidecar as a whole, whatever happens meanwhile."""
        data = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
        temporary = self._sidecar.with_name(self._sidecar.name + ".new")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._sidecar)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @property
    def records(self) -> list[Record]:
        """Those on the disk."""
        return self._records.records

    def append(self, records: Sequence[Record]) -> None:
        """Write a batch; it is on the disk when this returns."""
        self._records.append(records)

    def close(self) -> None:
        """Release the files; those of a run that wrote nothing are removed."""
        if not self.records:
            self.path.unlink(missing_ok=True)
            self._sidecar.unlink(missing_ok=True)
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
