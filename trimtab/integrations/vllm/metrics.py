"""Counters and histograms of trimtab's methods on vLLM's own `/metrics`.

A method runs in vLLM's engine core or its workers, `/metrics` is answered by the API server, and what vLLM carries from
one to the other (`SchedulerStats`) has no room for others. prometheus_client's files do: a process writes its values to
a memory-mapped file in a directory, whoever answers a scrape sums over the files. With several API servers vLLM itself
works so (`PROMETHEUS_MULTIPROC_DIR`), and its directory is used. With one it does not; then the process that starts the
engine chooses a directory (`expose`), its children inherit the name, and a collector in vLLM's registry reads it. The
directory exists once a method writes to it: until then, and in an engine that asks for no method, nothing is added.

Workers on another machine (Ray) write where nobody reads: their values are missing.

Tested with vLLM 0.31 and 0.32 and prometheus_client 0.26, whose file format has stood since 2017.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import secrets
import shutil
import tempfile
import threading
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DIRECTORY = "TRIMTAB_METRICS_DIR"
"""Environment variable with the directory, where vLLM has none of its own."""

_VLLM_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_lock = threading.Lock()
_files: dict[str, Any] = {}
_exposed = False


class Counter:
    """A number that only grows.

    Args:
        name: as it is scraped, without `_total`.
        help: one line.
        labels: their names.
    """

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self._name, self._help, self._labels = name, help, tuple(labels)

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """Add to the value of these labels; from any process of the engine, from any thread."""
        _add("counter", self._help, self._name, {f"{self._name}_total": amount}, _checked(self._labels, labels))


class Histogram:
    """How often values fell into buckets, and their sum.

    Args:
        name: as it is scraped, without `_bucket` and `_sum`.
        help: one line.
        buckets: upper bounds, ascending; that of infinity is added.
        labels: their names.
    """

    def __init__(self, name: str, help: str, buckets: Iterable[float], labels: Sequence[str] = ()) -> None:
        self._name, self._help, self._labels = name, help, tuple(labels)
        self._bounds = [*map(float, buckets), float("inf")]

    def observe(self, *values: float, **labels: str) -> None:
        """Count values; from any process of the engine, from any thread."""
        from prometheus_client.utils import floatToGoString

        given = _checked(self._labels, labels)
        _add("histogram", self._help, self._name, {f"{self._name}_sum": sum(values)}, given)
        # every bucket is written, the empty ones too: a scrape sums over those that it finds
        hits = Counts(bisect_left(self._bounds, value) for value in values)
        for index, bound in enumerate(self._bounds):
            amount = {f"{self._name}_bucket": float(hits[index])}
            _add("histogram", self._help, self._name, amount, given | {"le": floatToGoString(bound)})


def expose() -> None:
    """Let the `/metrics` of this process show what its children write; does nothing in a child, and once in a parent.

    Called where the engine starts, before it has children.
    """
    global _exposed
    if _exposed or multiprocessing.parent_process() is not None or os.environ.get(_VLLM_DIRECTORY):
        return
    try:
        from prometheus_client import REGISTRY
    except ImportError:  # no vLLM, and nobody who would scrape
        return
    _exposed = True

    directory = Path(tempfile.gettempdir(), f"trimtab-metrics-{os.getpid()}-{secrets.token_hex(8)}")
    # over that of a parent engine: what this one's children write is this one's
    os.environ[DIRECTORY] = str(directory)
    REGISTRY.register(_Collector(directory))
    atexit.register(_remove, directory, os.getpid())


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in what it forked
        shutil.rmtree(directory, ignore_errors=True)


class _Collector:
    """Sums over the files of a directory that need not be there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterable[Any]:
        if not self._directory.is_dir():
            return []
        from prometheus_client.multiprocess import MultiProcessCollector

        return MultiProcessCollector(None, str(self._directory)).collect()


def _checked(names: tuple[str, ...], given: Mapping[str, str]) -> dict[str, str]:
    if set(given) != set(names):
        raise TypeError(f"labels are {sorted(given)}, not {sorted(names)}")
    return dict(given)


def _add(kind: str, help: str, metric: str, amounts: Mapping[str, float], labels: Mapping[str, str]) -> None:
    from prometheus_client.mmap_dict import mmap_key

    with _lock:
        file = _file(kind)
        if file is None:
            return
        for name, amount in amounts.items():
            key = mmap_key(metric, name, list(labels), list(labels.values()), help)
            value, _ = file.read_value(key)
            file.write_value(key, value + amount, 0.0)


def _file(kind: str) -> Any:
    directory = os.environ.get(_VLLM_DIRECTORY) or os.environ.get(DIRECTORY)
    if directory is None:  # no engine was started here
        return None
    # the collector reads the kind before the first "_"; a fork must not write into its parent's file
    path = str(Path(directory, f"{kind}_trimtab-{os.getpid()}.db"))
    if path not in _files:
        from prometheus_client.mmap_dict import MmapedDict

        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        _files[path] = MmapedDict(path)
    return _files[path]
