"""Fixtures of `pairs.py`, where the packages of `trimtab[route]` are installed."""

from __future__ import annotations

from importlib.util import find_spec

if all(find_spec(package) for package in ("starlette", "uvicorn", "httpx", "prometheus_client")):
    from tests.route.pairs import make_pair, pair, scripted, tokenizer  # noqa: F401
else:
    collect_ignore_glob = ["test_*.py"]
