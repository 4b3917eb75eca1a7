"""The operations as torch operators: schema, fake results, compilation in one graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.kernels import linear_w4a16 as w4
from trimtab.kernels.linear_w8a8 import linear_w8a8, quantize_weight
from trimtab.kernels.linear_w8a16 import linear_w8a16

SOURCE = torch.Generator().manual_seed(0)
WEIGHT, SCALE = quantize_weight(torch.randn(24, 64, generator=SOURCE))
BIAS = torch.randn(24, generator=SOURCE)
LEVELS = w4.quantize_weight(torch.randn(24, 64, generator=SOURCE))
PACKED, SCALES_ZEROS = w4.pack(*LEVELS)
BLOCKS = w4.pack_blocks(LEVELS[0])

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear_w8a8": lambda x: linear_w8a8(x, WEIGHT, SCALE, BIAS, bits=16),
    "linear_w8a8 8 bits": lambda x: linear_w8a8(x, WEIGHT, SCALE, bits=8),
    "linear_w8a16": lambda x: linear_w8a16(x, WEIGHT, SCALE, BIAS),
    "linear_w4a16": lambda x: w4.linear_w4a16(x, PACKED, SCALES_ZEROS, 24, BIAS),
    "linear_w4a16 blocks": lambda x: w4.linear_w4a16(x, BLOCKS, SCALES_ZEROS[:, :24], 24),
}
ARGUMENTS = {
    "linear_w8a8": (WEIGHT, SCALE, BIAS, 16),
    "linear_w8a16": (WEIGHT, SCALE, None),
    "linear_w4a16": (PACKED, SCALES_ZEROS, 24, None),
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3])
def test_operator(name: str, dtype: torch.dtype, rows: int) -> None:
    """torch's own checks: schema, fake results against real ones, tracing with and without dynamic shapes."""
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.library.opcheck(getattr(torch.ops.trimtab, name).default, (x, *ARGUMENTS[name]))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph(name: str, dtype: torch.dtype) -> None:
    """Without a break, to the same bits as uncompiled; no tokens too."""
    torch.compiler.reset()
    call = CALLS[name]
    compiled = torch.compile(lambda x: call(x) * 2, fullgraph=True, backend="aot_eager")
    for rows in (2, 5, 0):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).to(dtype)
        assert torch.equal(compiled(x), call(x) * 2)
