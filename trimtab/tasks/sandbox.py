"""Run code that a model wrote, in a process of its own with limits.

It is a fence against accidents (endless loops, memory, files left about), not against an attacker: run benchmarks of
models that you do not trust in a container without network.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY = 1 << 30
FILE_SIZE = 1 << 20


def passes(program: str, *, timeout: float = 10.0) -> bool:
    """Whether a Python program ends by itself, without an error, within `timeout` seconds.

    It runs isolated (`python -I`: no user packages, no environment), in an empty directory that is deleted afterwards,
    with 1 GiB of memory and files of at most 1 MiB; whatever processes it started are killed with it.
    """
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "program.py")
        file.write_text(program, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-I", file.name],
            cwd=place,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _limit(timeout),
        )
        try:
            return process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            _kill_group(process.pid)
            process.wait()


def _limit(seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(leader, signal.SIGKILL)
