"""Every kernel compiles for the GPUs it claims: without spills, reading 16 bytes at a time."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.slow
def test_kernels_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, whatever this one's Triton is set to do; the table goes to the log.

    The whole list, of every dtype and tile, is `python -m trimtab.kernels.aot`.
    """
    results = tmp_path / "results.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "trimtab.kernels.aot", "--representative", "--json", str(results)],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(results.read_text())
    assert {row["target"] for row in rows} == {80, 90}
    kernels = {row["name"].partition(" ")[0] for row in rows}
    assert kernels >= {"linear_w8a8", "linear_w8a16", "linear_w4a16", "quantize_activation", "entropy", "fusion_alpha"}
    assert all(row["width"] == 16 for row in rows if row["wants_width"])
    assert all(row["registers"] > 0 for row in rows)


PTX = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1
)
{
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	add.s64 	%rd3, %rd1, %rd9;
	add.s64 	%rd4, %rd2, %rd9;
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd3 + 0 ], 0x10, %r5;
	@%p2 ld.global.L1::evict_first.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd3 + 0 ];
	@%p2 ld.global.v2.b16 { %rs1, %rs2 }, [ %rd4 + 0 ];
}
"""


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets, it does not compile")
def test_load_width_is_that_of_the_parameter() -> None:
    """Narrow reads of one argument do not count against another, and do count against their own."""
    from trimtab.kernels.aot import load_width

    assert load_width(PTX, 0) == 16
    assert load_width(PTX, 1) == 4
    assert load_width(PTX.replace("0x10", "0x8"), 0) == 8
