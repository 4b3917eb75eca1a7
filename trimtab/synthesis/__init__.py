from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from .records import Record
    from .synthesizer import Synthesizer

__all__ = ["Record", "Settings", "Synthesizer"]

_HOMES = {"Record": "records", "Synthesizer": "synthesizer"}


def __getattr__(name: str) -> Any:
    # As in trimtab itself: the settings are checked before the seconds of importing transformers.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
