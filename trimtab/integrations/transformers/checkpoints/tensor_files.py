"""The tensors of a checkpoint directory, one at a time, each held to the shape and type that its format gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....errors import InputError

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"


class TensorFiles:
    """Names of the tensors in a directory's safetensors files; nothing is read before it is asked for.

    Args:
        directory: with model.safetensors, or with model.safetensors.index.json and the files that it names.

    Raises:
        InputError: no such file, or a damaged one.
    """

    def __init__(self, directory: Path) -> None:
        index = directory / _INDEX
        if index.is_file():
            try:
                places: dict[str, str] = json.loads(index.read_text())["weight_map"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{index} is no index of safetensors files: download it again") from error
            for file in sorted({*places.values()}):
                if not (directory / file).is_file():
                    raise InputError(f"{index} names {file}, which is not in the directory: download it again")
            self._file = {name: directory / file for name, file in places.items()}
        elif (directory / _WHOLE).is_file():
            with _opened(directory / _WHOLE) as opened:
                self._file = dict.fromkeys(opened.keys(), directory / _WHOLE)
        else:
            raise InputError(
                f"directory {str(directory)!r} has neither {_WHOLE} nor {_INDEX}: convert it to safetensors"
            )
        self.directory = directory

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def modules(self, *suffixes: str) -> set[str]:
        """Names of the modules that have a tensor of one of these last names."""
        return {module for module, _, last in (name.rpartition(".") for name in self._file) if last in suffixes}

    def int8_modules(self) -> set[str]:
        """Names of the modules whose `weight` is int8."""
        found = set()
        for file in sorted({*self._file.values()}):
            with _opened(file) as opened:
                mine = [name for name in opened.keys() if name.endswith(".weight")]  # noqa: SIM118
                found |= {name.removesuffix(".weight") for name in mine if opened.get_slice(name).get_dtype() == "I8"}
        return found

    def read(self, name: str, shape: Sequence[int], dtypes: Sequence[torch.dtype], rule: str) -> Tensor:
        """One tensor.

        Args:
            name: of the tensor.
            shape: what its format gives it.
            dtypes: those that its format allows.
            rule: where the shape comes from; for the message.

        Raises:
            InputError: it is missing, of another shape or type, or its file is damaged.
        """
        if name not in self._file:
            raise InputError(f"{self.directory} has no tensor {name}: {rule}")
        file = self._file[name]
        with _opened(file) as opened:
            tensor: Tensor = opened.get_tensor(name)
        if list(tensor.shape) != list(shape) or tensor.dtype not in dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise InputError(
                f"{file}: tensor {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, "
                f"{wanted} {list(shape)} is needed: {rule}"
            )
        return tensor

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor that is there."""
        with _opened(self._file[name]) as opened:
            shape: list[int] = opened.get_slice(name).get_shape()
        return shape

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file[name]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is no safetensors file or a damaged one ({error}): download it again") from error
