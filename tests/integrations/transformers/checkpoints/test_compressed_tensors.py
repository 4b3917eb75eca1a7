"""compressed-tensors directories: written by that package where it is installed, and from the formats' definition."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab import InputError, load_quantized
from trimtab.kernels.quantized_linear import Int4Linear, Int8Linear

from .writing import change, configure, grid, relative_error, words, write

LAYER = "model.layers.0.mlp.up_proj"
IDS = torch.arange(1, 90)[None]
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def about(format: str, weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


W8A8 = about("int-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}, TOKENS)
W4A16 = about(
    "pack-quantized", {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
)


def pack_w8(linear: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
    scale = (linear.weight.abs().amax(1, keepdim=True) / 127.5).to(torch.bfloat16)
    levels = (linear.weight / scale.float()).round().clamp(-128, 127)
    return {"weight": levels.to(torch.int8), "weight_scale": scale}, levels * scale.float()


def pack_w4(linear: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
    levels, scale, _, weight = grid(linear.weight, torch.arange(linear.in_features) // 32, symmetric=True)
    shape = torch.tensor(linear.weight.shape)
    return {"weight_packed": words(levels), "weight_scale": scale.t(), "weight_shape": shape}, weight


class RoundedInputs:
    """Runs a plain model with the inputs of its linears rounded per token to 8 bits, in float64."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model)
        for name, module in self.model.named_modules():
            if type(module) is nn.Linear and name != "lm_head":
                module.register_forward_pre_hook(self._round)

    @staticmethod
    def _round(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        scale = inputs[0].double().abs().amax(-1, keepdim=True) / 127
        return (((inputs[0].double() / scale).round() * scale).to(inputs[0].dtype),)


@pytest.mark.slow
@torch.no_grad()
def test_w8a8_of_a_real_model(two_layers: PreTrainedModel, tmp_path: Path) -> None:
    plain = write(two_layers, tmp_path, W8A8, pack_w8)
    model = load_quantized(tmp_path, dtype=torch.float32)
    expected, found = plain(IDS).logits, model(IDS).logits
    # a rounding that falls the other way costs a level of one activation; rounding them all costs 0.034
    assert relative_error(found, RoundedInputs(plain).model(IDS).logits) < 1e-2
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.8


@torch.no_grad()
def test_w8a8_computes_what_the_format_says(biased: PreTrainedModel, tmp_path: Path) -> None:
    plain = write(biased, tmp_path, W8A8, pack_w8)
    model = load_quantized(tmp_path)
    found = {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert len(found) == 14
    for name, module in found.items():
        assert torch.equal(module.weight * module.scale[:, None], plain.get_submodule(name).weight), name
        assert module.activation_bits == 8
    # a rounding that falls the other way in float32 costs one level of one activation
    assert relative_error(model(IDS).logits, RoundedInputs(plain).model(IDS).logits) < 1e-2


def test_one_scale_for_a_whole_weight(biased: PreTrainedModel, tmp_path: Path) -> None:
    def pack(linear: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        scale = linear.weight.abs().amax()[None] / 127
        levels = (linear.weight / scale).round()
        return {"weight": levels.to(torch.int8), "weight_scale": scale}, levels * scale

    weights = W8A8["config_groups"]["group_0"]["weights"] | {"strategy": "tensor"}
    plain = write(biased, tmp_path, about("int-quantized", weights, TOKENS), pack)
    module = load_quantized(tmp_path).get_submodule(LAYER)
    assert isinstance(module, Int8Linear)
    assert torch.equal(module.weight * module.scale[:, None], plain.get_submodule(LAYER).weight)


@torch.no_grad()
def test_w4a16(biased: PreTrainedModel, tmp_path: Path) -> None:
    plain = write(biased, tmp_path, W4A16, pack_w4)
    model = load_quantized(tmp_path)
    for name, module in model.named_modules():
        if isinstance(module, Int4Linear):
            assert torch.equal(module.dequantized(), plain.get_submodule(name).weight), name
    assert relative_error(model(IDS).logits, plain(IDS).logits) < 0.03


def test_w4a16_with_channels_out_of_order(biased: PreTrainedModel, tmp_path: Path) -> None:
    def pack(linear: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        order = torch.randperm(linear.in_features, generator=torch.Generator().manual_seed(1))
        group_of = order // 32
        levels, scale, _, weight = grid(linear.weight, group_of, symmetric=True)
        packed = {"weight_packed": words(levels), "weight_scale": scale.t(), "weight_g_idx": group_of.int()}
        return packed, weight

    plain = write(biased, tmp_path, W4A16, pack)
    module = load_quantized(tmp_path).get_submodule(LAYER)
    assert isinstance(module, Int4Linear)
    assert torch.equal(module.dequantized(), plain.get_submodule(LAYER).weight)


SCHEMES = {
    "w8a8": ({"num_bits": 8, "strategy": "channel"}, TOKENS),
    "w4a16": ({"num_bits": 4, "strategy": "group", "group_size": 32}, None),
    "w4a16 asymmetric": ({"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, None),
    "w4a16 per channel": ({"num_bits": 4, "strategy": "channel", "symmetric": False}, None),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_what_the_package_itself_writes(biased: PreTrainedModel, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor

    weights, activations = SCHEMES[scheme]
    theirs = _initialised(biased, weights, activations)
    compressor = ModelCompressor.from_pretrained_model(theirs)
    compressor.compress_model(theirs)
    theirs.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    model = load_quantized(tmp_path)
    compressor.decompress_model(theirs)
    for name, module in _low_bit(model):
        weight = module.dequantized() if isinstance(module, Int4Linear) else module.weight * module.scale[:, None]
        torch.testing.assert_close(weight, theirs.get_submodule(name).weight.data, rtol=1e-6, atol=1e-6)


def _initialised(model: PreTrainedModel, weights: dict[str, Any], activations: dict[str, Any] | None) -> Any:
    """A copy with the package's own scales and zero points at its linears."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    theirs = copy.deepcopy(model)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**weights),
        input_activations=QuantizationArgs(**activations) if activations else None,
    )
    apply_quantization_config(theirs, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    for module in theirs.modules():
        if hasattr(module, "quantization_scheme"):
            size = weights.get("group_size", module.in_features)
            low, high = module.weight.unflatten(1, (-1, size)).aminmax(dim=-1)
            scale, zero = calculate_qparams(low, high, module.quantization_scheme.weights)
            module.weight_scale.copy_(scale)
            module.weight_zero_point.copy_(zero)
    return theirs


def _low_bit(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    found = [item for item in model.named_modules() if isinstance(item[1], (Int4Linear, Int8Linear))]
    assert len(found) == 14
    return iter(found)


def _with(part: str, **settings: Any) -> dict[str, Any]:
    changed = copy.deepcopy(W8A8)
    group = changed["config_groups"]["group_0"]
    group[part] = None if settings.get("none") else group[part] | settings
    return changed


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_with("weights", num_bits=4), "8 bits"),
        (_with("weights", type="float"), "symmetric integers"),
        (_with("weights", symmetric=False), "symmetric integers"),
        (_with("weights", strategy="group", group_size=128), "strategy 'group'"),
        (_with("input_activations", symmetric=False), "dynamic, one scale a token"),
        (_with("input_activations", dynamic=False, strategy="tensor"), "dynamic, one scale a token"),
        (_with("input_activations", none=True), "dynamic, one scale a token"),
        (W8A8 | {"format": "float-quantized"}, "float-quantized"),
        (W8A8 | {"config_groups": {}}, "0 schemes"),
        (W8A8 | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (W8A8 | {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        (W8A8 | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        (
            W8A8
            | {
                "config_groups": W8A8["config_groups"]
                | {"group_1": _with("weights", num_bits=4)["config_groups"]["group_0"]}
            },
            "2 schemes",
        ),
        (about("pack-quantized", W4A16["config_groups"]["group_0"]["weights"] | {"num_bits": 8}), "4 bits"),
        (about("pack-quantized", W4A16["config_groups"]["group_0"]["weights"], TOKENS), "16-bit activations"),
    ],
)
def test_settings_that_are_not_read(
    biased: PreTrainedModel, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    write(biased, tmp_path, W8A8, pack_w8)
    configure(tmp_path, config)
    with pytest.raises(InputError, match=message) as refused:
        load_quantized(tmp_path)
    assert "config.json" in str(refused.value)


@pytest.mark.parametrize(
    ("last", "tensor"),
    [
        ("weight", torch.zeros(96, 64)),  # not compressed
        ("weight", torch.zeros(96, 65, dtype=torch.int8)),
        ("weight", None),
        ("weight_scale", torch.zeros(96)),
    ],
)
def test_w8a8_tensors_that_do_not_fit(
    biased: PreTrainedModel, tmp_path: Path, last: str, tensor: Tensor | None
) -> None:
    write(biased, tmp_path, W8A8, pack_w8)
    change(tmp_path, f"{LAYER}.{last}", tensor)
    with pytest.raises(InputError) as refused:
        load_quantized(tmp_path)
    assert f"{LAYER}.{last}" in str(refused.value)


def test_an_int8_weight_without_its_scale(biased: PreTrainedModel, tmp_path: Path) -> None:
    write(biased, tmp_path, W8A8, pack_w8)
    change(tmp_path, f"{LAYER}.weight_scale", None)
    with pytest.raises(InputError, match=f"{LAYER}.weight_scale"):
        load_quantized(tmp_path)


@pytest.mark.parametrize("last", ["weight_packed", "weight_scale"])
def test_missing_w4a16_tensors(biased: PreTrainedModel, tmp_path: Path, last: str) -> None:
    write(biased, tmp_path, W4A16, pack_w4)
    change(tmp_path, f"{LAYER}.{last}", None)
    with pytest.raises(InputError, match=f"{LAYER}.{last}"):
        load_quantized(tmp_path)
