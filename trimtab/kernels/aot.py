"""Compile the kernels ahead of time for GPUs that are not at hand, and read what the compiler made of them.

    python -m trimtab.kernels.aot

needs Triton but no GPU: its own ptxas assembles for any target. A kernel passes if ptxas spills no register, and if the
weights are read 16 bytes at a time by each thread; the reductions have logits in the place of weights.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .gpu import entropy, fusion_alpha, linear_w4a16, linear_w8a8, linear_w8a16
from .gpu.convert import levels_dtype
from .tuning import Operation, default

TARGETS = (80, 90)
WIDTH = 16
"""Bytes that a thread has to read at once."""
SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program may have."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One specialisation of a kernel.

    Attributes:
        name: of the variant.
        kernel: a `triton.jit` function.
        types: of its arguments that are no constants, in Triton's notation.
        constants: the others.
        warps: of a program.
        stages: of the pipeline.
        streamed: the argument that is read from memory once and for all, whose load width counts; None: not checked.
        uneven: integer arguments that are not multiples of 16.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
    streamed: str | None
    uneven: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What ptxas and the PTX say of a variant.

    Attributes:
        name: of the variant.
        target: compute capability times 10.
        registers: of a thread.
        spilled: machine instructions that store registers to memory or read them back.
        shared: bytes of shared memory of a program.
        width: bytes that a thread reads of the streamed argument at once, the narrowest of its loads; 0: unknown.
        wants_width: whether `width` has to be `WIDTH`.
    """

    name: str
    target: int
    registers: int
    spilled: int
    shared: int
    width: int
    wants_width: bool

    @property
    def faults(self) -> list[str]:
        """What keeps the kernel from passing."""
        found = []
        if self.spilled:
            found.append(f"{self.spilled} spills")
        if self.shared > SHARED[self.target]:
            found.append(f"{self.shared} bytes of shared memory of {SHARED[self.target]}")
        if self.wants_width and self.width < WIDTH:
            found.append(f"loads of {self.width} bytes")
        return found


def variants() -> Iterator[Variant]:
    """The specialisations that models use: each format, dtype and tile, split and not, with and without edges."""
    for rows in (16, 32, 64):
        for dtype in ("bf16", "fp16", "fp32"):
            if dtype == "fp32" and rows == 32:
                continue
            yield _w8a16(rows, dtype)
            yield _w4a16(rows, dtype, 128, zero=True)
        yield _w4a16(rows, "bf16", 32, zero=True)
        yield _w4a16(rows, "bf16", 64, zero=False)
        for planes in (1, 2):
            yield _w8a8(rows, "bf16", planes)
    yield _w8a16(16, "bf16", split=1)
    yield _w8a16(16, "bf16", even=False)
    yield _w8a8(16, "fp16", 2, split=1)
    yield _w8a8(16, "fp32", 1, even=False)
    yield _w4a16(16, "bf16", 32, zero=True, even=False)
    yield _w4a16(16, "fp16", 128, zero=False, split=1)
    for dtype in ("bf16", "fp32"):
        yield from _reductions(dtype)
    yield _rows_together()
    for dtype in ("bf16", "fp32"):
        for planes in (1, 2):
            yield _quantize(dtype, planes)


def representative() -> Iterator[Variant]:
    """Each kernel in bfloat16, the linears with the tiles of 16 and of 64 tokens: what a test has the time for."""
    for rows in (16, 64):
        yield _w8a16(rows, "bf16")
        yield _w8a8(rows, "bf16", 2)
        yield _w4a16(rows, "bf16", 128, zero=True)
    yield from _reductions("bf16")
    yield _rows_together()
    yield _quantize("bf16", 2)


def compiled(chosen: Iterable[Variant], targets: Iterable[int] = TARGETS) -> Iterator[Compiled]:
    """Compile each variant for each target."""
    listed = tuple(targets)
    for variant in chosen:
        for target in listed:
            yield compile_variant(variant, target)


def compile_variant(variant: Variant, target: int) -> Compiled:
    """Compile for one target and read the result."""
    names = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "constexpr") for name in names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name in variant.types and name not in variant.uneven and not variant.types[name].startswith("fp")
    }
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": variant.warps, "num_stages": variant.stages},
    )
    registers, spilled = _inspect(kernel.asm["cubin"])
    width = 0 if variant.streamed is None else load_width(kernel.asm["ptx"], _pointers(variant).index(variant.streamed))
    return Compiled(
        name=variant.name,
        target=target,
        registers=registers,
        spilled=spilled,
        shared=kernel.metadata.shared,
        width=width,
        wants_width=variant.streamed is not None,
    )


def load_width(ptx: str, parameter: int) -> int:
    """Bytes of the narrowest read from global memory through a pointer derived from the parameter of this index.

    Address registers are followed back through the arithmetic that made them; the reads are `ld.global` with its
    vector length, and `cp.async` with its byte count.
    """
    origin: dict[str, set[str]] = {}
    lines = [line.strip() for line in ptx.splitlines()]
    wanted = f"_param_{parameter}]"
    tainted: set[str] = set()
    for line in lines:
        if match := re.match(r"(?:@%?!?\w+ )?([a-z0-9_.:]+)\s+(.*);", line):
            registers = re.findall(r"%r[ds]?\d+|%rd\d+", match[2])
            if match[1].startswith("ld.param") and wanted in match[2]:
                tainted.add(registers[0])
            elif registers and match[1].split(".")[0] in ("add", "mad", "mov", "cvta", "sub"):
                origin.setdefault(registers[0], set()).update(registers[1:])
    grown = True
    while grown:
        before = len(tainted)
        tainted |= {register for register, sources in origin.items() if sources & tainted}
        grown = len(tainted) > before
    widths = []
    for line in lines:
        address = re.search(r"\[\s*(%rd\d+)", line)
        if (match := re.search(r"ld\.global\S*?(?:\.v(\d))?\.([bufs])(\d+)", line)) and address:
            if address[1] in tainted:
                widths.append(int(match[1] or 1) * int(match[3]) // 8)
        elif (
            match := re.search(r"cp\.async\.c[ag]\S*\s+\[[^\]]*\],\s*\[\s*(%rd\d+)[^\]]*\],\s*(0x[0-9a-f]+|\d+)", line)
        ) and (match[1] in tainted):
            widths.append(int(match[2], 0))
    return min(widths, default=0)


def _inspect(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the machine instructions that move a register to or from local memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        said = [
            subprocess.run(
                [triton.knobs.nvidia.cuobjdump.path, option, str(path)], capture_output=True, text=True, check=True
            ).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        ]
    registers = re.search(r"REG:(\d+)", said[0])
    assert registers is not None, said[0]
    return int(registers[1]), len(re.findall(r"\s(?:LDL|STL)[.\s]", said[1]))


def _pointers(variant: Variant) -> list[str]:
    """Arguments as the compiled kernel has them: constants are gone."""
    return [name for name in variant.kernel.arg_names if name in variant.types]


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SPLIT = 4


def _linear(
    operation: Operation,
    label: str,
    dtype: str,
    rows: int,
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    even: bool,
    split: int,
) -> Variant:
    """A matrix kernel with the tiles of `tuning.default`, and a bias."""
    config = default(operation, rows, 4096, 4096, _DTYPES[dtype], 132)
    options = config.options() | {"SPLIT_K": split}
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    shared = {
        "scale": "*fp32", "bias": f"*{dtype}", "y": f"*{dtype}", "partial": "*fp32", "arrivals": "*i32", "M": "i32",
        "N": "i32", "K": "i32",
    }  # fmt: skip
    return Variant(
        name=f"{operation} {dtype} {label}{' ' if label else ''}m={rows} split={split}{'' if even else ' edges'}",
        kernel=kernel,
        types=shared | types,
        constants=constants | options | {"EVEN_K": even, "HAS_BIAS": True},
        warps=warps,
        stages=stages,
        streamed="packed" if operation == "linear_w4a16" else "weight",
        uneven=("M", "blocks", "stride_scale_out", "stride_zero_out", *(() if even else ("N",))),
    )


def _w8a16(rows: int, dtype: str, *, even: bool = True, split: int = _SPLIT) -> Variant:
    types = {"x": f"*{dtype}", "weight": "*i8", "stride_x": "i32"}
    constants = {"LEVELS": levels_dtype(_DTYPES[dtype])}
    return _linear("linear_w8a16", "", dtype, rows, linear_w8a16.kernel, types, constants, even, split)


def _w8a8(rows: int, dtype: str, planes: int, *, even: bool = True, split: int = _SPLIT) -> Variant:
    types = {"planes": "*i8", "step": "*fp32", "weight": "*i8", "partial": "*i32"}
    label, constants = f"planes={planes}", {"PLANES": planes}
    return _linear("linear_w8a8", label, dtype, rows, linear_w8a8.kernel, types, constants, even, split)


def _w4a16(rows: int, dtype: str, group: int, *, zero: bool, even: bool = True, split: int = _SPLIT) -> Variant:
    strides = ("blocks", "stride_x", "stride_scale_group", "stride_scale_out", "stride_zero_group", "stride_zero_out")
    types = {"x": f"*{dtype}", "packed": "*i16", "scale": "*bf16", "zero": "*bf16", **dict.fromkeys(strides, "i32")}
    label = f"group={group}{' zero' if zero else ''}"
    constants = {"LEVELS": levels_dtype(_DTYPES[dtype]), "GROUP": group, "HAS_ZERO": zero}
    return _linear("linear_w4a16", label, dtype, rows, linear_w4a16.kernel, types, constants, even, split)


def _quantize(dtype: str, planes: int) -> Variant:
    return Variant(
        name=f"quantize_activation {dtype} planes={planes}",
        kernel=linear_w8a8.quantize_kernel,
        types={"x": f"*{dtype}", "planes": "*i8", "step": "*fp32", "M": "i32", "K": "i32", "stride_x": "i32"},
        constants={"LEVELS": 127.0 if planes == 1 else 32512.0, "PLANES": planes, "BLOCK": 4096},
        warps=8,
        stages=3,
        streamed="x",
        uneven=("M",),
    )


def _reductions(dtype: str) -> Iterator[Variant]:
    """The kernels over the vocabulary."""
    yield Variant(
        name=f"entropy {dtype}",
        kernel=entropy.parts_kernel,
        types={
            "logits": f"*{dtype}", "sums": "*fp32", "best": "*i32", "rows": "i32", "vocab": "i32", "stride": "i32",
            "share": "i32",
        },
        constants={"BLOCK": entropy.BLOCK, "PARTS": 64},
        warps=8,
        stages=3,
        streamed="logits",
        uneven=("rows",),
    )  # fmt: skip
    logits = dict.fromkeys(("large", "base", "experts"), f"*{dtype}")
    strides = dict.fromkeys(("V", "stride_large", "stride_base", "stride_expert", "stride_row"), "i32")
    constants = {"EXPERTS": 1, "BLOCK": fusion_alpha.BLOCK}
    yield Variant(
        name=f"fusion_alpha targets {dtype}",
        kernel=fusion_alpha.targets_kernel,
        types=logits | strides | dict.fromkeys(("norms", "center", "target"), "*fp32"),
        constants=constants,
        warps=4,
        stages=3,
        streamed="large",
    )
    pointers = dict.fromkeys(("norms", "center", "goal", "alpha_out", "distance_out"), "*fp32")
    numbers = {"alpha_max": "fp32", "precision": "fp32", "newton_steps": "i32", "converged_out": "*i8"}
    yield Variant(
        name=f"fusion_alpha search {dtype}",
        kernel=fusion_alpha.search_kernel,
        types=logits | strides | pointers | numbers,
        constants=constants | {"WIDE": fusion_alpha.WIDE},
        warps=16,
        stages=3,
        streamed=None,
        uneven=("newton_steps",),
    )


def _rows_together() -> Variant:
    """What puts the parts of a row together, the same for every dtype of logits."""
    return Variant(
        name="entropy rows",
        kernel=entropy.rows_kernel,
        types={"sums": "*fp32", "best": "*i32", "entropy": "*fp32", "values": "*fp32", "tokens": "*i64"},
        constants={"PARTS": 64, "WIDTH": 64},
        warps=4,
        stages=3,
        streamed=None,
    )


def table(rows: Iterable[Compiled]) -> Iterator[str]:
    """A line for each result, after the heading."""
    yield f"{'kernel':<52} {'target':>7} {'registers':>9} {'spilled':>8} {'shared':>8} {'load':>5}"
    for row in rows:
        width = str(row.width) if row.wants_width else "-"
        faults = f"  {'; '.join(row.faults)}" if row.faults else ""
        yield (
            f"{row.name:<52} {'sm_' + str(row.target):>7} {row.registers:>9} {row.spilled:>8} {row.shared:>8} "
            f"{width:>5}{faults}"
        )


def main() -> int:
    """Print the table; 1 if a kernel does not pass."""
    parser = argparse.ArgumentParser(description="Compile the GPU kernels without a GPU.")
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--representative", action="store_true", help="a few of them, as the tests do")
    parser.add_argument("--only", default="", help="variants whose name has this in it")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    results: list[Compiled] = []

    def keep(rows: Iterable[Compiled]) -> Iterator[Compiled]:
        for row in rows:
            results.append(row)
            yield row

    listed = representative() if arguments.representative else variants()
    chosen = (variant for variant in listed if arguments.only in variant.name)
    for line in table(keep(compiled(chosen, arguments.targets))):
        print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in results], indent=1))
    return int(any(row.faults for row in results))


if __name__ == "__main__":
    sys.exit(main())
