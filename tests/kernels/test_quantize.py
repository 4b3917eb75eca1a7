"""All linears of a model in place: which, in which format, and what is refused before anything changes."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.conftest import FAMILIES, tiny
from trimtab.errors import InputError
from trimtab.kernels.linear_w4a16 import pack, pack_blocks, unpack
from trimtab.kernels.quantize import quantize_
from trimtab.kernels.quantized_linear import Int4Linear, Int8Linear, QuantizedLinear

IDS = torch.arange(1, 60)[None]


def low_bit(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.mark.parametrize("format", ["w8a8", "w8a16", "w4a16"])
@torch.no_grad()
def test_every_linear_but_the_head(tiny_llama: PreTrainedModel, format: Any) -> None:
    model = copy.deepcopy(tiny_llama)
    assert quantize_(model, format, group=32) is model
    replaced = low_bit(model)
    linears = {name for name, module in tiny_llama.named_modules() if type(module) is nn.Linear}
    assert set(replaced) == linears - {"lm_head"}
    for name, module in replaced.items():
        original = tiny_llama.get_submodule(name)
        assert (module.in_features, module.out_features) == (original.in_features, original.out_features)
        x = torch.randn(2, 3, module.in_features)
        error = (module(x) - original(x)).double().square().mean().sqrt() / original(x).double().std()
        assert error < {"w8a8": 0.02, "w8a16": 0.01, "w4a16": 0.12}[format], name
    assert model.generate(IDS[:, :5], max_new_tokens=4, do_sample=False).shape == (1, 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    if family == "gpt2":  # its projections are Conv1D modules
        with pytest.raises(InputError, match=r"no torch\.nn\.Linear"):
            quantize_(tiny(family))
    else:
        assert len(low_bit(quantize_(tiny(family), "w8a8"))) == 14


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), set()),
        (("lm_head",), {"lm_head"}),
        (("mlp.down_proj",), {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)}),
        (("layers.1", "lm_head"), {"lm_head"} | {f"model.layers.1.{n}" for n in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}),
    ],
)  # fmt: skip
def test_skip(tiny_llama: PreTrainedModel, skip: tuple[str, ...], left: set[str]) -> None:
    model = quantize_(copy.deepcopy(tiny_llama), skip=skip)
    assert {name for name, module in model.named_modules() if type(module) is nn.Linear} == left


def test_one_module_under_two_names_stays_one() -> None:
    shared = nn.Linear(32, 32)
    model = quantize_(nn.ModuleDict({"a": shared, "b": shared}))
    assert isinstance(model["a"], Int8Linear)
    assert model["a"] is model["b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "w2a16"}, "format is 'w2a16'"),
        ({"format": "w4a16", "group": 48}, "group is 48"),
        ({"format": "w4a16"}, "no multiple of group=128: use group=64"),
        ({"skip": "lm_head"}, r"\['lm_head'\]"),
        ({"skip": ("lm_haed",)}, "'lm_haed'"),
        ({"skip": ("model", "lm_head")}, r"no torch\.nn\.Linear"),
        ({"format": "w8a16", "calibration": [[1]]}, "leave it out"),
    ],
)
def test_refused_before_anything_changes(tiny_llama: PreTrainedModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize_(tiny_llama, **arguments)
    assert not low_bit(tiny_llama)


def int4_layer(seed: int = 0) -> tuple[Int4Linear, nn.Linear]:
    torch.manual_seed(seed)
    linear = nn.Linear(96, 70)
    model = quantize_(nn.Sequential(linear), "w4a16", group=32)
    layer = model[0]
    assert isinstance(layer, Int4Linear)
    return layer, linear


@torch.no_grad()
def test_the_4_bit_state_is_the_same_before_and_after_use() -> None:
    layer, _ = int4_layer()
    fresh = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    y = layer(torch.ones(2, 96))
    assert layer.packed.dtype != torch.int16  # the operator's layout took the blocks' place
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in layer.state_dict().items())
    other, _ = int4_layer(1)
    other(torch.ones(1, 96))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(torch.ones(2, 96)), y)
    assert torch.equal(copy.deepcopy(layer)(torch.ones(2, 96)), y)


@pytest.mark.parametrize("format", ["w8a8", "w4a16"])
@torch.no_grad()
def test_scales_survive_a_change_of_dtype(format: Any) -> None:
    torch.manual_seed(0)
    model = quantize_(nn.Sequential(nn.Linear(64, 48)), format, group=32)
    x = torch.randn(3, 64).half().float()
    before = model(x)
    model.half()
    assert model[0].bias.dtype == torch.float16
    assert (model(x.half()) - before).abs().max() < 0.01
    model.float()
    scales = model[0].scale if format == "w8a8" else model[0].scales_zeros
    assert scales.dtype == (torch.float32 if format == "w8a8" else torch.bfloat16)
    model[0].bias.copy_(model[0].bias)
    torch.testing.assert_close(model(x), before, atol=1e-3, rtol=0)


@torch.no_grad()
def test_threads_may_make_the_first_call_together() -> None:
    layer, _ = int4_layer()
    x = torch.randn(4, 96)
    expected = copy.deepcopy(layer)(x)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(layer(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("out", [1, 15, 16, 63, 64, 65, 80, 200])
@pytest.mark.parametrize("size", [32, 96, 160])
def test_unpack_inverts_pack(out: int, size: int) -> None:
    levels = torch.randint(0, 16, (out, size), dtype=torch.int32, generator=torch.Generator().manual_seed(out))
    packed, _ = pack(levels, torch.ones(out, size // 32))
    assert torch.equal(unpack(packed, out, size), levels)
    assert torch.equal(unpack(pack_blocks(levels), out, size), levels)
