"""Packed integers to half precision in registers, without a conversion instruction.

A kernel that reads `b` bits per weight at the speed of memory has `32 / b` times fewer instructions for each weight
than a float32 one. Converting by the integer-to-float instruction costs one issue slot at a sixteenth to a quarter of
full rate. Instead the integer becomes the low bits of the significand of a number whose exponent makes one step equal
to 1, and a constant is subtracted: exact, two values at a time (Kim et al. 2022, arXiv 2211.10017, section 4; Frantar
et al. 2024, arXiv 2408.11743).

Only a GPU runs inline PTX; the interpreter takes the plain conversions. tests/kernels/test_convert.py executes the
instructions for every value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run on the CPU, in Triton's interpreter: a test of correctness only."""

INT8_TO_FP16 = """{
    .reg .b32 biased, offset, magic;
    mov.b32 magic, 0x64646464;
    mov.b32 offset, 0x64806480;
    xor.b32 biased, $2, 0x80808080;
    prmt.b32 $0, biased, magic, 0x4140;
    prmt.b32 $1, biased, magic, 0x4342;
    sub.f16x2 $0, $0, offset;
    sub.f16x2 $1, $1, offset;
}"""
"""Four int8: `0x6400 | (w + 128)` is 1024 + 128 + w."""

INT8_TO_BF16 = """{
    .reg .b32 pair, low, sign, magic, minus, none;
    mov.b32 magic, 0x43004300;
    mov.b32 minus, 0xbf80bf80;
    mov.b32 none, 0;
    prmt.b32 pair, $2, none, 0x4140;
    lop3.b32 low, pair, 0x007f007f, magic, 0xea;
    lop3.b32 sign, pair, 0x00800080, magic, 0xea;
    fma.rn.bf16x2 $0, sign, minus, low;
    prmt.b32 pair, $2, none, 0x4342;
    lop3.b32 low, pair, 0x007f007f, magic, 0xea;
    lop3.b32 sign, pair, 0x00800080, magic, 0xea;
    fma.rn.bf16x2 $1, sign, minus, low;
}"""
"""Four int8. Seven bits of significand hold the low seven: `0x4300 | low` is 128 + low. The sign bit falls on the
exponent's lowest bit: `0x4300 | sign` is 128 or 256, so that the difference is low or low - 128."""

INT4_TO_FP16 = """{
    .reg .b32 shifted, offset, magic;
    mov.b32 magic, 0x64006400;
    mov.b32 offset, 0x64086408;
    lop3.b32 $0, $4, 0x000f000f, magic, 0xea;
    shr.u32 shifted, $4, 4;
    lop3.b32 $1, shifted, 0x000f000f, magic, 0xea;
    shr.u32 shifted, $4, 8;
    lop3.b32 $2, shifted, 0x000f000f, magic, 0xea;
    shr.u32 shifted, $4, 12;
    lop3.b32 $3, shifted, 0x000f000f, magic, 0xea;
    sub.f16x2 $0, $0, offset;
    sub.f16x2 $1, $1, offset;
    sub.f16x2 $2, $2, offset;
    sub.f16x2 $3, $3, offset;
}"""
"""Four levels in each of two words: `0x6400 | q` is 1024 + q."""

INT4_TO_BF16 = """{
    .reg .b32 shifted, one, offset, magic;
    mov.b32 magic, 0x43004300;
    mov.b32 one, 0x3f803f80;
    mov.b32 offset, 0xc308c308;
    lop3.b32 $0, $4, 0x000f000f, magic, 0xea;
    shr.u32 shifted, $4, 4;
    lop3.b32 $1, shifted, 0x000f000f, magic, 0xea;
    shr.u32 shifted, $4, 8;
    lop3.b32 $2, shifted, 0x000f000f, magic, 0xea;
    shr.u32 shifted, $4, 12;
    lop3.b32 $3, shifted, 0x000f000f, magic, 0xea;
    fma.rn.bf16x2 $0, $0, one, offset;
    fma.rn.bf16x2 $1, $1, one, offset;
    fma.rn.bf16x2 $2, $2, one, offset;
    fma.rn.bf16x2 $3, $3, one, offset;
}"""
"""Likewise: `0x4300 | q` is 128 + q. There is no `sub.bf16x2` before sm_90."""

_INT8_TO_FP16 = tl.constexpr(INT8_TO_FP16)
_INT8_TO_BF16 = tl.constexpr(INT8_TO_BF16)
_INT4_TO_FP16 = tl.constexpr(INT4_TO_FP16)
_INT4_TO_BF16 = tl.constexpr(INT4_TO_BF16)


@triton.jit
def int8_to_float(w, dtype: tl.constexpr):
    """An int8 tensor in `dtype`, exactly."""
    if dtype == tl.float16:
        return tl.inline_asm_elementwise(_INT8_TO_FP16, "=r,=r,r", [w], dtype=tl.float16, is_pure=True, pack=4)
    elif dtype == tl.bfloat16:  # noqa: RET505 - Triton compiles what follows an if, returned or not
        return tl.inline_asm_elementwise(_INT8_TO_BF16, "=r,=r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        return w.to(tl.float32)


@triton.jit
def int4_to_float(w, dtype: tl.constexpr):
    """Four tensors of levels less 8 from an int16 tensor, lowest bits first, exactly."""
    if dtype == tl.float16:
        return tl.inline_asm_elementwise(
            _INT4_TO_FP16,
            "=r,=r,=r,=r,r",
            [w],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    elif dtype == tl.bfloat16:  # noqa: RET505
        return tl.inline_asm_elementwise(
            _INT4_TO_BF16,
            "=r,=r,=r,=r,r",
            [w],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        return (
            ((w & 15) - 8).to(tl.float32),
            (((w >> 4) & 15) - 8).to(tl.float32),
            (((w >> 8) & 15) - 8).to(tl.float32),
            (((w >> 12) & 15) - 8).to(tl.float32),
        )


@triton.jit
def dot_levels(levels, x, acc):
    """`acc + levels @ x` for levels that bfloat16 holds exactly, with the whole significand of float32 activations.

    A float32 number is the sum of three of eight bits each, cut off and not rounded so that none overflows; inf and nan
    stay in the first. Three products in bfloat16 are as exact as one in float32, which no tensor core has.
    """
    if x.dtype == tl.float32 and levels.dtype == tl.bfloat16:
        finite = tl.abs(x) < float("inf")
        high = tl.where(finite, _cut(x), x)
        rest = tl.where(finite, x - high, 0.0)
        middle = _cut(rest)
        acc = tl.dot(levels, (rest - middle).to(tl.bfloat16), acc)
        acc = tl.dot(levels, middle.to(tl.bfloat16), acc)
        return tl.dot(levels, high.to(tl.bfloat16), acc)
    else:  # noqa: RET505
        return tl.dot(levels, x.to(levels.dtype), acc, input_precision="ieee")


@triton.jit
def _cut(x):
    """The first eight bits of significand of float32 numbers."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


def levels_dtype(activations: torch.dtype) -> tl.dtype:
    """What levels are converted to, to be multiplied with activations of a dtype; the interpreter knows no bfloat16."""
    if INTERPRETED:
        return tl.float32
    return tl.float16 if activations == torch.float16 else tl.bfloat16
