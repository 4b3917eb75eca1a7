"""A checkpoint in 8 bits as llm-compressor writes it (compressed-tensors, W8A8), and the same arithmetic in torch."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.kernels.linear_w8a8 import quantize_weight


class _Linear(torch.nn.Module):
    """`x` rounded to int8 for each token, the weight for each output channel, products in float64."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.scale = quantize_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        product = (x / step).round().double() @ self.weight.double().T
        out = (product * step.double() * self.scale.double().view(1, -1)).to(x.dtype)
        return out if self.bias is None else out + self.bias


def write_int8(model: PreTrainedModel, path: Path, kept: Collection[str]) -> PreTrainedModel:
    """Write `model` with its linear layers in 8 bits, but for those named in `kept`, and return what it computes."""
    rounded = copy.deepcopy(model)
    tensors = dict(model.state_dict())
    for name, linear in list(model.named_modules()):
        if isinstance(linear, torch.nn.Linear) and name not in kept and name != "lm_head":
            own = _Linear(linear)
            rounded.set_submodule(name, own)
            tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = own.weight, own.scale.float().view(-1, 1)
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    path.mkdir()
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, path / "model.safetensors")
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": eight | {"strategy": "channel", "dynamic": False},
        "input_activations": eight | {"strategy": "token", "dynamic": True},
    }
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", *kept],
        "config_groups": {"group_0": group},
    }
    (path / "config.json").write_text(json.dumps(config))
    return rounded
