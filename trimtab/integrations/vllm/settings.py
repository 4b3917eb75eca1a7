"""What an engine was told about trimtab: `--additional-config '{"trimtab": {...}}'`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vllm.config import VllmConfig

from ...errors import InputError


def settings(vllm_config: VllmConfig, section: str, known: Collection[str]) -> dict[str, Any]:
    """One section of the settings; empty if there is none.

    Args:
        vllm_config: of the engine.
        section: key under `trimtab`.
        known: what the section may hold.

    Raises:
        InputError: the section is no object, or holds something else.
    """
    extra = vllm_config.additional_config
    own = extra.get("trimtab", {}) if isinstance(extra, dict) else {}
    if not isinstance(own, dict):
        raise InputError(f'additional_config["trimtab"] is {own!r}: give an object of sections')
    values = own.get(section, {})
    if not isinstance(values, dict):
        raise InputError(f'additional_config["trimtab"]["{section}"] is {values!r}: give an object')
    for name in values:
        if name not in known:
            raise InputError(
                f'additional_config["trimtab"]["{section}"] has {name!r}: give of {", ".join(sorted(known))}'
            )
    return values
