"""Files of lines that outlive a kill: what was appended stays, and a run with other settings cannot go on in them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError


class LineFile:
    """An append-only file of lines, locked while it is open.

    Opening changes nothing; `keep` takes out a last line that a kill or a power cut left torn.

    Args:
        path: made if it is missing.

    Attributes:
        lines: those in the file, without their newlines.
        torn: bytes after the last of them.

    Raises:
        InputError: another process writes to the file.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{str(path)!r} is being written by another process: wait for it or stop it") from None
        self._file.seek(0)
        *self.lines, rest = self._file.readall().split(b"\n")
        self.torn = len(rest)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write lines, each with its newline; they are on the disk when this returns."""
        data = b"".join(lines)
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())
        self.lines += [line.removesuffix(b"\n") for line in lines]

    def keep(self, count: int) -> None:
        """Drop the lines from position `count` on, and what is torn."""
        if count < len(self.lines) or self.torn:
            self._file.truncate(sum(len(line) + 1 for line in self.lines[:count]))
            os.fsync(self._file.fileno())
            del self.lines[count:]
            self.torn = 0

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


def check_same(settings: Mapping[str, Any], begun: Mapping[str, Any], path: Path, option: str) -> None:
    """Refuse to go on in a file with other settings than it was begun with.

    Args:
        settings: JSON values, now.
        begun: those of the file.
        path: the file, for the message.
        option: that names it.

    Raises:
        InputError: names the first setting that differs, and both values.
    """
    for name in [*settings, *(name for name in begun if name not in settings)]:
        now, then = settings.get(name), begun.get(name)
        if now != then:
            raise InputError(
                f"{name} is {_shown(now)} and {str(path)!r} was begun with {_shown(then)}: give that, or choose "
                f"another {option}"
            )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
