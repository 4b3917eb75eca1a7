"""Packages that only some calls need."""

from __future__ import annotations

from importlib.util import find_spec

from ...errors import InputError


def require(*packages: str, purpose: str, install: str | None = None) -> None:
    """Check that packages can be imported; `install` is what pip calls them, if by another name.

    Raises:
        InputError: one is missing; the message says how to install it.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(f"{purpose} needs a package that is not installed: pip install {install or ' '.join(missing)}")
