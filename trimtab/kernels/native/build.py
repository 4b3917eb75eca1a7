"""Compile the C sources beside this file once per machine, into one library, and load it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# torch first: the library is to share the OpenMP runtime (and its threads) that torch brings along
import torch  # noqa: F401

from ...paths import cache_dir

SOURCES = tuple(Path(__file__).with_name(name) for name in ("decoder.c", "linear.c", "tilted_moments.c"))
HEADERS = tuple(Path(__file__).with_name(name) for name in ("linear.h", "team.h", "vectors.h"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
DISABLE = "TRIMTAB_NATIVE"
"""Environment variable: `0` keeps to torch's operators."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; `status()` says why."""
    try:
        return ctypes.CDLL(str(_build()))
    except (OSError, subprocess.SubprocessError, RuntimeError):
        return None


def status() -> str:
    """One line for `trimtab doctor`."""
    if library() is not None:
        return f"native ({_compiler()}, {'AVX-512 VNNI' if 'avx512_vnni' in _cpu() else 'no AVX-512 VNNI'})"
    try:
        _build()
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        return f"torch operators ({error})"
    return "torch operators (the compiled library could not be loaded)"


def _build() -> Path:
    if os.environ.get(DISABLE) == "0":
        raise RuntimeError(f"{DISABLE}=0")
    if sys.platform != "linux":
        raise RuntimeError(f"no native kernels for {sys.platform} yet")
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError("no C compiler found: install gcc or clang, or set CC")
    # -march=native code of one machine can be illegal on another that shares the home directory
    texts = [path.read_text() for path in (*SOURCES, *HEADERS)]
    recipe = "\n".join([*texts, *FLAGS, compiler, platform.machine(), _cpu()])
    target = cache_dir() / "native" / f"trimtab-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            built = Path(scratch) / target.name
            subprocess.run(
                [compiler, *FLAGS, "-o", str(built), *map(str, SOURCES), "-lm"],
                check=True,
                capture_output=True,
                timeout=120,
            )
            os.replace(built, target)
    return target


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, filter(None, [os.environ.get("CC"), "gcc", "clang", "cc"]))), None)


@functools.cache
def _cpu() -> str:
    """Instruction sets of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))), "")
