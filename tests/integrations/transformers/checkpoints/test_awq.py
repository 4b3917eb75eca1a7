"""AWQ directories, packed here from the format's definition (AutoAWQ's `WQLinear_GEMM.from_linear`)."""

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

LAYER = "model.layers.1.self_attn.k_proj"
ABOUT = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
IDS = torch.arange(1, 90)[None]
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the output channel at each place of a word, from the lowest bits up


class Pack:
    def __init__(self, group: int) -> None:
        self.group = group

    def __call__(self, linear: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
        group = linear.in_features if self.group == -1 else self.group
        levels, scale, zero, weight = grid(linear.weight, torch.arange(linear.in_features) // group, symmetric=False)
        return {"qweight": interleaved(levels.t()), "qzeros": interleaved(zero), "scales": scale}, weight


def interleaved(fields: Tensor) -> Tensor:
    return words(fields.unflatten(1, (-1, 8))[..., ORDER].flatten(1))


@pytest.mark.slow
@torch.no_grad()
def test_a_real_model_gives_the_logits_of_its_weights(two_layers: PreTrainedModel, tmp_path: Path) -> None:
    plain = write(two_layers, tmp_path, ABOUT, Pack(64))
    model = load_quantized(tmp_path, dtype=torch.float32)
    expected, found = plain(IDS).logits, model(IDS).logits
    assert relative_error(found, expected) < 0.03
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


@pytest.mark.parametrize("group", [32, -1])
@torch.no_grad()
def test_weights_are_read_exactly(biased: PreTrainedModel, tmp_path: Path, group: int) -> None:
    plain = write(biased, tmp_path, ABOUT | {"group_size": group}, Pack(group))
    model = load_quantized(tmp_path)
    found = {name: module for name, module in model.named_modules() if isinstance(module, Int4Linear)}
    assert len(found) == 14
    for name, module in found.items():
        assert torch.equal(module.dequantized(), plain.get_submodule(name).weight), name
    assert relative_error(model(IDS).logits, plain(IDS).logits) < 0.03


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bits": 8}, "bits 8"),
        ({"version": "gemv"}, "'gemv'"),
        ({"version": "marlin"}, "'marlin'"),
        ({"group_size": None}, "group_size None"),
        ({"dynamic": {"+:.*": {"bits": 8}}}, "dynamic"),
    ],
)
def test_settings_that_are_not_read(
    biased: PreTrainedModel, tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    write(biased, tmp_path, ABOUT | {"group_size": 32}, Pack(32))
    configure(tmp_path, ABOUT | setting)
    with pytest.raises(InputError, match=message):
        load_quantized(tmp_path)


@pytest.mark.parametrize(
    ("last", "tensor"),
    [
        ("qweight", torch.zeros(8, 64, dtype=torch.int32)),  # GPTQ's way round
        ("qzeros", None),
        ("scales", torch.zeros(2, 64, dtype=torch.float64)),
    ],
)
def test_tensors_that_do_not_fit(biased: PreTrainedModel, tmp_path: Path, last: str, tensor: Tensor | None) -> None:
    write(biased, tmp_path, ABOUT | {"group_size": 32}, Pack(32))
    change(tmp_path, f"{LAYER}.{last}", tensor)
    with pytest.raises(InputError) as refused:
        load_quantized(tmp_path)
    assert f"{LAYER}.{last}" in str(refused.value)
    assert "groups of 32" in str(refused.value)
