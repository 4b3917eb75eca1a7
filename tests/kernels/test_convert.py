"""The inline PTX of the kernels, executed for every value: Triton's interpreter does not run it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from trimtab.kernels.gpu.convert import INT4_TO_BF16, INT4_TO_FP16, INT8_TO_BF16, INT8_TO_FP16

MASK = 0xFFFFFFFF


def run(program: str, outputs: int, operand: int) -> list[int]:
    """32-bit registers `$0` to `$outputs - 1` after the program, its one input `$outputs` being `operand`.

    The instructions are those of the PTX ISA manual, sections 9.7 (lop3, prmt, shr, xor, mov) and 9.7.4 (packed
    arithmetic, done here in torch on the same two halves).
    """
    registers = {f"${outputs}": operand}
    for line in program.strip().strip("{}").split(";"):
        tokens = re.findall(r"[\w.$]+", line)
        if not tokens or tokens[0] == ".reg":
            continue
        name, target = tokens[0], tokens[1]
        values = [registers[token] if token in registers else int(token, 0) for token in tokens[2:]]
        registers[target] = _execute(name, values)
    return [registers[f"${index}"] for index in range(outputs)]


def _execute(name: str, values: list[int]) -> int:
    if name == "mov.b32":
        return values[0]
    if name == "xor.b32":
        return values[0] ^ values[1]
    if name == "shr.u32":
        return values[0] >> values[1]
    if name == "lop3.b32":
        table = values[3]
        bits = 0
        for bit in range(32):
            index = (values[0] >> bit & 1) << 2 | (values[1] >> bit & 1) << 1 | (values[2] >> bit & 1)
            bits |= (table >> index & 1) << bit
        return bits
    if name == "prmt.b32":
        source = (values[0] | values[1] << 32).to_bytes(8, "little")
        picked = [source[values[2] >> 4 * place & 7] for place in range(4)]
        assert not values[2] & 0x8888, "sign replication is not used"
        return int.from_bytes(bytes(picked), "little")
    if name == "sub.f16x2":
        return _register(_halves(values[0], torch.float16) - _halves(values[1], torch.float16))
    if name == "fma.rn.bf16x2":
        a, b, c = (_halves(value, torch.bfloat16).double() for value in values)
        return _register((a * b + c).to(torch.bfloat16))
    raise AssertionError(f"unknown instruction {name}")


def _halves(register: int, dtype: torch.dtype) -> Tensor:
    words = torch.tensor([register & 0xFFFF, register >> 16], dtype=torch.int32).to(torch.int16)
    return words.view(dtype)


def _register(halves: Tensor) -> int:
    low, high = (int(word) & 0xFFFF for word in halves.view(torch.int16))
    return low | high << 16


@pytest.mark.parametrize(("program", "dtype"), [(INT8_TO_FP16, torch.float16), (INT8_TO_BF16, torch.bfloat16)])
def test_int8(program: str, dtype: torch.dtype) -> None:
    """Every byte in every place, beside neighbours that would show a carry."""
    for value in range(256):
        for place in range(4):
            content = [(value * 7 + 13 * other) % 256 for other in range(4)]
            content[place] = value
            registers = run(program, 2, int.from_bytes(bytes(content), "little"))
            got = torch.cat([_halves(register, dtype) for register in registers])
            assert got.tolist() == [byte - 256 * (byte > 127) for byte in content]


@pytest.mark.parametrize(("program", "dtype"), [(INT4_TO_FP16, torch.float16), (INT4_TO_BF16, torch.bfloat16)])
def test_int4(program: str, dtype: torch.dtype) -> None:
    """Every level in every bit field of both words, lowest bits first."""
    for level in range(16):
        for place in range(8):
            content = [(level * 5 + 3 * other) % 16 for other in range(8)]
            content[place] = level
            operand = sum(nibble << 4 * index for index, nibble in enumerate(content))
            fields = torch.stack([_halves(register, dtype) for register in run(program, 4, operand)])
            assert fields.tolist() == [[content[field] - 8, content[4 + field] - 8] for field in range(4)]
