"""Reading a GGUF file's header: its metadata, and whether the whole file is there.

The reader of the `gguf` package parses a vocabulary of 262,144 tokens in ten seconds; this one skips the
arrays, so that a damaged file is refused at once and not in the middle of a conversion.
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class GgufHeader(NamedTuple):
    """What a GGUF file says of itself.

    Attributes:
        metadata: every key whose value is not an array.
        tensors: the names of the tensors.
    """

    metadata: dict[str, Any]
    tensors: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """The model's family, in llama.cpp's spelling."""
        return str(self.metadata["general.architecture"])


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file and check that every tensor it lists lies inside the file.

    Raises:
        InputError: the file is not GGUF, is cut off or damaged, or is one part of a split model.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(24)
        if start[:4] != MAGIC:
            raise InputError(
                f"{str(path)!r} is not a GGUF file: it begins with {start[:4]!r}, not {MAGIC!r}; "
                "give a .gguf file or a directory with a config.json"
            )
        if len(start) < 24:
            raise _damaged(path, "the file ends inside its header")
        version, tensor_count, key_count = struct.unpack("<IQQ", start[4:])
        if version not in _VERSIONS:
            raise InputError(
                f"{str(path)!r} is GGUF version {version}; versions 2 and 3 can be read: convert the model again"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header, extent = _parse(_Cursor(data, 24), tensor_count, key_count)
            except (struct.error, ValueError, KeyError, OverflowError) as error:
                raise _damaged(path, "its header cannot be read") from error
    if extent > size:
        raise _damaged(path, f"its tensors need {extent:,} bytes and the file has {size:,}")
    if int(header.metadata.get("split.count", 1)) > 1:
        raise InputError(
            f"{str(path)!r} is one part of a split model: join the parts with `llama-gguf-split --merge` first"
        )
    return header


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"GGUF file {str(path)!r} is damaged ({why}): download it again")


class _Cursor:
    """A position in the mapped file; every read moves it on."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data = data
        self.position = position

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.position)
        self.position += struct.calcsize("<" + form)
        return value

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise ValueError("past the end of the file")

    def string(self) -> str:
        length = self.number("Q")
        start = self.position
        self.skip(length)
        return self.data[start : self.position].decode("utf-8")

    def value(self) -> Any:
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        element, count = self.number("I"), self.number("Q")
        if element == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            self.skip(count * struct.calcsize("<" + _SCALARS[element]))
        return None


def _parse(cursor: _Cursor, tensor_count: int, key_count: int) -> tuple[GgufHeader, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        value = cursor.value()
        if value is not None:
            metadata[key] = value
    names: list[str] = []
    data_bytes = 0
    for _ in range(tensor_count):
        names.append(cursor.string())
        shape = [cursor.number("Q") for _ in range(cursor.number("I"))]
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.number("I"))]
        offset = cursor.number("Q")
        data_bytes = max(data_bytes, offset + prod(shape) // block * block_bytes)
    alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
    data_start = -(-cursor.position // alignment) * alignment
    header = GgufHeader(metadata, tuple(names))
    header.architecture  # noqa: B018 - a file without one cannot be read: the KeyError says so
    return header, data_start + data_bytes
