"""The native int8 linear: layout of the weights, what is kept of them, exact sums, processors without VNNI."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import threads
from trimtab.kernels.linear_w8a8 import (
    ActivationBits,
    linear_w8a8,
    linear_w8a8_reference,
    quantize_activation,
    quantize_weight,
)
from trimtab.kernels.native import linear as native
from trimtab.kernels.quantize import quantize_linear

pytestmark = pytest.mark.skipif(not native.available(), reason="no native kernels on this machine")

SEEDS = st.integers(0, 2**32)
BITS: st.SearchStrategy[ActivationBits] = st.sampled_from([8, 16])
packs = pytest.mark.skipif(
    native.available() and not native._functions().packs, reason="this machine reads weights as they lie"
)


def random_weight(out: int, size: int, seed: int) -> Tensor:
    """Every int8 there is, -128 too."""
    return torch.randint(-128, 128, (out, size), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(out=st.integers(1, 100), size=st.integers(1, 40), seed=SEEDS)
def test_packed_layout(out: int, size: int, seed: int) -> None:
    """Output channel 32 c + r and input channel 4 k + j lie at [c, k, r, j], plus 128; the rest is 128."""
    weight = random_weight(out, size, seed)
    packed = native.pack(weight)
    assert packed.shape == (-(-out // 32), -(-size // 4), 32, 4)
    assert packed.is_contiguous()
    whole = packed.view(torch.uint8).permute(0, 2, 1, 3).reshape(32 * len(packed), -1).int() - 128
    assert torch.equal(whole[:out, :size], weight.int())
    assert (whole[out:] == 0).all()
    assert (whole[:, size:] == 0).all()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 13, 17, 40]),
    out=st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 61, 97, 131]),
    size=st.sampled_from([1, 2, 3, 4, 5, 13, 61, 64, 67, 127, 509]),
    seed=SEEDS,
    bits=BITS,
    count=st.sampled_from([1, 2, 3]),
)
@example(rows=17, out=97, size=20011, seed=0, bits=16, count=2)
def test_sums_are_exact(rows: int, out: int, size: int, seed: int, bits: ActivationBits, count: int) -> None:
    """Integers, scales of powers of 2: as int64 sums of the planes put together, rounded to float32 once for each."""
    weight = random_weight(out, size, seed)
    levels = 127 if bits == 8 else 32512
    x = torch.randint(-levels, levels + 1, (rows, size), generator=torch.Generator().manual_seed(seed)).float()
    x[:, 0] = levels  # the step is 1
    scale = 2.0 ** torch.randint(-20, 20, (out,), generator=torch.Generator().manual_seed(seed)).float()
    planes, step = quantize_activation(x, bits)
    assert (step == 1).all()
    sums = planes.long() @ weight.long().T
    expected = sums.float() if bits == 8 else (256 * sums[:rows].double().float() + sums[rows:].float())
    with threads(count):
        y = linear_w8a8(x, weight, scale, bits=bits)
    assert ((y / scale - expected).abs() <= 2.0**-24 * expected.abs() * (bits == 16)).all()


@pytest.mark.parametrize("size", [3, 64, 4099, 20_000])
@pytest.mark.parametrize("rows", [1, 9])
def test_accumulation_does_not_saturate(rows: int, size: int) -> None:
    """All products at their extremes, of either sign: sums up to 3e8, beyond the 2**31 of an offset accumulator."""
    for sign in (-1, 1):
        for level in (-128, 127):
            weight = torch.full((5, size), level, dtype=torch.int8)
            y = linear_w8a8(torch.full((rows, size), 127.0 * sign), weight, torch.ones(5), bits=8)
            assert torch.equal(y, torch.full_like(y, 127 * sign * level * size))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 12), out=st.integers(1, 70), size=st.integers(1, 150), seed=SEEDS, bits=BITS)
def test_is_torch_operators(rows: int, out: int, size: int, seed: int, bits: ActivationBits) -> None:
    """The same levels and sums, so that only float32 rounding of the end result differs."""
    source = torch.Generator().manual_seed(seed)
    weight, scale = quantize_weight(torch.randn(out, size, generator=source))
    x, bias = torch.randn(rows, size, generator=source), torch.randn(out, generator=source)
    native_result = linear_w8a8(x, weight, scale, bias, bits=bits)
    with mock.patch.object(native, "available", return_value=False):
        expected = linear_w8a8(x, weight, scale, bias, bits=bits)
    magnitude = linear_w8a8_reference(x.abs(), weight.abs(), scale, bias.abs())
    assert ((native_result.double() - expected.double()).abs() <= 8 * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_inf_and_nan_stay_in_their_token(bits: ActivationBits, value: float) -> None:
    """A token that holds one has no scale and is nan throughout, its neighbours are untouched."""
    weight, scale = quantize_weight(torch.randn(40, 67, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(5, 67, generator=torch.Generator().manual_seed(1))
    clean = linear_w8a8(x, weight, scale, bits=bits)
    x[2, 66] = value
    y = linear_w8a8(x, weight, scale, bits=bits)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@packs
def test_weights_are_packed_once() -> None:
    """For a tensor and what it holds: again after a change in place or new storage, and no longer than it lives."""
    weight = random_weight(33, 10, 0)
    with mock.patch.object(native, "pack", wraps=native.pack) as pack:
        first = native.packed(weight)
        assert native.packed(weight) is first
        assert pack.call_count == 1
        weight[0, 0] += 1
        assert torch.equal(native.packed(weight), native.pack(weight))
        assert pack.call_count == 3
        weight.data = random_weight(33, 10, 1)
        assert torch.equal(native.packed(weight), native.pack(weight))
    held = len(native._packed)
    del weight, pack  # the mock remembers its arguments
    gc.collect()
    assert len(native._packed) < held


@packs
def test_inference_tensors() -> None:
    """They do not record changes: nothing is kept of them, and a layer makes its weights ordinary tensors."""
    x = torch.ones(1, 8)
    with torch.inference_mode():
        weight = random_weight(4, 8, 0)
        before = linear_w8a8(x, weight, torch.ones(4))
        weight.neg_()
        assert torch.equal(linear_w8a8(x, weight, torch.ones(4)), -before)
        layer = quantize_linear([torch.randn(4, 8)], [None], bits=8)
        with mock.patch.object(native, "pack", wraps=native.pack) as pack:
            layer(x)
            layer(x)
        assert pack.call_count == 1


@packs
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layer_packs_once(backend: str) -> None:
    """A compiled graph calls the operator on the layer's own tensor."""
    torch.compiler.reset()
    layer = quantize_linear([torch.randn(40, 24)], [torch.randn(40)], bits=8, magnitude=torch.rand(24), outliers=2)
    x = torch.randn(3, 24)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with mock.patch.object(native, "pack", wraps=native.pack) as pack:
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected)
    assert pack.call_count == 0


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx2 -mno-avx512f"])
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="compiles for other x86 processors")
def test_processors_without_vnni(tmp_path: Path, flags: str) -> None:
    """The same file compiled for them passes the tests of its sums."""
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec gcc "$@" {flags}\n')
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "sums or saturate or torch_operators or inf_and", __file__],
        env={**os.environ, "CC": str(compiler), "TRIMTAB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:]
