"""GPTQ directories, packed here from the format's definition (AutoGPTQ's and GPTQModel's `QuantLinear.pack`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab import InputError, load_quantized
from trimtab.kernels.quantized_linear import Int4Linear

from .writing import change, configure, grid, relative_error, words, write

LAYER = "model.layers.0.self_attn.q_proj"
ABOUT = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
IDS = torch.arange(1, 90)[None]


class Pack:
    def __init__(self, group: int, *, symmetric: bool, act_order: bool, version: int = 1) -> None:
        self.group, self.symmetric, self.act_order, self.version = group, symmetric, act_order, version

    def __call__(self, linear: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        size = linear.in_features
        group = size if self.group == -1 else self.group
        turn = torch.Generator().manual_seed(size)
        quantised_in = torch.randperm(size, generator=turn) if self.act_order else torch.arange(size)
        group_of = torch.empty(size, dtype=torch.long)
        group_of[quantised_in] = torch.arange(size) // group
        levels, scale, zero, weight = grid(linear.weight, group_of, symmetric=self.symmetric)
        packed_zero = words(zero) - (0x11111111 if self.version == 1 else 0)
        tensors = {
            "qweight": words(levels).t(),
            "qzeros": packed_zero,
            "scales": scale,
            "g_idx": group_of.to(torch.int32),
        }
        return tensors, weight


def assert_same_weights(model: PreTrainedModel, plain: PreTrainedModel, layers: int) -> None:
    found = {name: module for name, module in model.named_modules() if isinstance(module, Int4Linear)}
    assert len(found) == layers
    for name, module in found.items():
        original = plain.get_submodule(name)
        assert torch.equal(module.dequantized(), original.weight), name
        assert (module.bias is None) == (original.bias is None)
        assert module.bias is None or torch.equal(module.bias, original.bias)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
@torch.no_grad()
def test_a_real_model_gives_the_logits_of_its_weights(
    two_layers: PreTrainedModel, tmp_path: Path, symmetric: bool
) -> None:
    about = ABOUT | {"sym": symmetric, "desc_act": not symmetric}
    plain = write(two_layers, tmp_path, about, Pack(64, symmetric=symmetric, act_order=not symmetric))
    model = load_quantized(tmp_path, dtype=torch.float32)
    assert_same_weights(model, plain, 14)
    expected, found = plain(IDS).logits, model(IDS).logits
    # what is left is torch's operator, which rounds activations and scales to bfloat16
    assert relative_error(found, expected) < 0.03
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_variants(biased: PreTrainedModel, tmp_path: Path, symmetric: bool, act_order: bool, version: int) -> None:
    about = ABOUT | {"sym": symmetric, "desc_act": act_order, "group_size": 32}
    about["checkpoint_format"] = "gptq" if version == 1 else "gptq_v2"
    pack = Pack(32, symmetric=symmetric, act_order=act_order, version=version)
    plain = write(biased, tmp_path, about, pack)
    model = load_quantized(tmp_path)
    assert_same_weights(model, plain, 14)
    for module in model.modules():
        if isinstance(module, Int4Linear):
            assert (module.order is not None) == act_order
            assert (module.scales_zeros.shape[2] == 1) == symmetric
    assert relative_error(model(IDS).logits, plain(IDS).logits) < 0.03


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [-1, 64, 96])
@torch.no_grad()
def test_sizes_of_groups(biased: PreTrainedModel, tmp_path: Path, group: int, symmetric: bool) -> None:
    """All channels in one group, and groups that do not divide a layer: of 96 channels, 64 and 32."""
    about = ABOUT | {"group_size": group, "sym": symmetric}
    plain = write(biased, tmp_path, about, Pack(group, symmetric=symmetric, act_order=False))
    model = load_quantized(tmp_path)
    assert_same_weights(model, plain, 14)
    assert relative_error(model(IDS).logits, plain(IDS).logits) < 0.03


def test_a_zero_point_of_zero_borrows_from_its_neighbour(biased: PreTrainedModel, tmp_path: Path) -> None:
    """GPTQModel takes 1 from whole words, so that one zero point of 0 changes the next field."""
    layer = biased.get_submodule(LAYER)
    assert isinstance(layer, nn.Linear)
    keep = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[::3].abs_()
    try:
        pack = Pack(32, symmetric=False, act_order=False)
        plain = write(biased, tmp_path, ABOUT | {"group_size": 32, "sym": False}, pack)
    finally:
        with torch.no_grad():
            layer.weight.copy_(keep)
    module = load_quantized(tmp_path).get_submodule(LAYER)
    assert isinstance(module, Int4Linear)
    assert torch.equal(module.dequantized(), plain.get_submodule(LAYER).weight)


def test_files_without_g_idx(biased: PreTrainedModel, tmp_path: Path) -> None:
    plain = write(biased, tmp_path, ABOUT | {"group_size": 32}, Pack(32, symmetric=True, act_order=False))
    change(tmp_path, f"{LAYER}.g_idx", None)
    module = load_quantized(tmp_path).get_submodule(LAYER)
    assert isinstance(module, Int4Linear)
    assert torch.equal(module.dequantized(), plain.get_submodule(LAYER).weight)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bits": 8}, "bits 8"),
        ({"bits": 3}, "bits 3"),
        ({"dynamic": {"-:.*down.*": {}}}, "dynamic"),
        ({"checkpoint_format": "marlin"}, "'marlin'"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": "all"}, "group_size 'all'"),
    ],
)
def test_settings_that_are_not_read(
    biased: PreTrainedModel, tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    write(biased, tmp_path, ABOUT, Pack(32, symmetric=True, act_order=False))
    configure(tmp_path, ABOUT | setting)
    with pytest.raises(InputError, match=message) as refused:
        load_quantized(tmp_path)
    assert str(tmp_path / "config.json") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("last", "tensor"),
    [
        ("qweight", None),
        ("qweight", torch.zeros(8, 127, dtype=torch.int32)),
        ("qweight", torch.zeros(8, 128, dtype=torch.int64)),
        ("qzeros", None),
        ("qzeros", torch.zeros(3, 16, dtype=torch.int32)),
        ("scales", None),
        ("scales", torch.zeros(2, 127)),
        ("scales", torch.zeros(2, 128, dtype=torch.int32)),
        ("g_idx", torch.zeros(63, dtype=torch.int32)),
        ("g_idx", torch.full((64,), 2, dtype=torch.int32)),  # no such group
        ("g_idx", torch.full((64,), -1, dtype=torch.int32)),
        ("g_idx", torch.tensor([0] * 33 + [1] * 31, dtype=torch.int32)),  # no whole groups
        ("bias", None),
        ("bias", torch.zeros(64)),
    ],
)
def test_tensors_that_do_not_fit(biased: PreTrainedModel, tmp_path: Path, last: str, tensor: Tensor | None) -> None:
    write(biased, tmp_path, ABOUT | {"group_size": 32}, Pack(32, symmetric=True, act_order=False))
    change(tmp_path, f"{LAYER}.{last}", tensor)
    with pytest.raises(InputError) as refused:
        load_quantized(tmp_path)
    assert LAYER in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_layer_that_the_model_lacks(biased: PreTrainedModel, tmp_path: Path) -> None:
    write(biased, tmp_path, ABOUT | {"group_size": 32}, Pack(32, symmetric=True, act_order=False))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(InputError, match=r"model\.layers\.1\..* no such module"):
        load_quantized(tmp_path)


def test_a_weight_that_is_missing_altogether(biased: PreTrainedModel, tmp_path: Path) -> None:
    write(biased, tmp_path, ABOUT | {"group_size": 32}, Pack(32, symmetric=True, act_order=False))
    change(tmp_path, "model.norm.weight", None)
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        load_quantized(tmp_path)
