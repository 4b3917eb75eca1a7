"""A directory of converted models: each made once, whole or not at all, and checked before it is used again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...errors import InputError
from ...paths import cache_dir

FORMAT_VERSION = 1
"""Part of every key: raise it whenever a conversion's result changes, and every model is converted anew."""

MANIFEST = "trimtab_manifest.json"
_EDGE = 1 << 20


def say(line: str) -> None:
    """One line for whoever waits; stdout stays free for results."""
    print(f"trimtab: {line}", file=sys.stderr, flush=True)


def file_fingerprint(path: Path) -> str:
    """A digest of a file's size, modification time and first and last MiB.

    Not of all its content: hashing takes one to four seconds a GB, at every load, and large models would
    pay more for the check than for the loading. Whoever edits a file changes its time.
    """
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, status.st_size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()


def converted(label: str, digest: str, build: Callable[[Path], None]) -> Path:
    """The directory of a converted model; built if it is not there or does not check out.

    Processes that want the same model at once wait for the first and use what it made.

    Args:
        label: a readable name, part of the directory's name.
        digest: of what is converted; another digest is another directory.
        build: fills the empty directory that it is given.

    Raises:
        InputError: the cache directory cannot be written.
        Exception: whatever `build` raises; nothing is left behind then.
    """
    root = cache_dir()
    target = root / f"{label}-{digest[:16]}-v{FORMAT_VERSION}"
    if problem(target) is None:
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(target) + ".lock")
        _acquire(lock, label)
    except OSError as error:
        raise InputError(
            f"cannot write the cache directory {str(root)!r} ({error.strerror}): "
            "set TRIMTAB_CACHE to a directory that can be written"
        ) from error
    try:
        _build_under_lock(label, target, build)
    finally:
        lock.release()
    return target


def _acquire(lock: FileLock, label: str) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that converts {label}")
        lock.acquire()


def _build_under_lock(label: str, target: Path, build: Callable[[Path], None]) -> None:
    found = problem(target)
    if found is None:
        return
    if target.exists():
        say(f"the converted {label} in {target} is damaged ({found}): removing it and converting again")
        shutil.rmtree(target)
    for left_behind in target.parent.glob(f".{target.name}.*"):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    say(f"converting {label} from GGUF; this happens only once, the result is kept in {target}")
    scratch = target.parent / f".{target.name}.{os.getpid()}"
    scratch.mkdir()
    try:
        build(scratch)
        _write_manifest(scratch)
        for path in (*scratch.iterdir(), scratch):
            _fsync(path)
        os.rename(scratch, target)
        _fsync(target.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def problem(directory: Path) -> str | None:
    """What is wrong with a converted directory, or None if it can be used.

    Small files are compared by digest, weights by size and by their safetensors header: reading a GB at
    every load would cost more than the load.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        entries: dict[str, dict[str, Any]] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest is missing or unreadable"
    for name, entry in entries.items():
        path = directory / name
        try:
            if path.stat().st_size != entry["size"]:
                return f"{name} has another size"
            if "sha256" in entry:
                if _sha256(path) != entry["sha256"]:
                    return f"{name} has other content"
            elif not _safetensors_complete(path):
                return f"{name} is not a whole safetensors file"
        except OSError:
            return f"{name} cannot be read"
    return None


def _write_manifest(directory: Path) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.iterdir()):
        entry: dict[str, Any] = {"size": path.stat().st_size}
        if path.suffix != ".safetensors":
            entry["sha256"] = _sha256(path)
        files[path.name] = entry
    text = json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1)
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _safetensors_complete(path: Path) -> bool:
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            return False
        (length,) = struct.unpack("<Q", prefix)
        size = path.stat().st_size
        if length > size - 8:
            return False
        try:
            tensors = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return bool(8 + length + max(ends, default=0) == size)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open directories
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
