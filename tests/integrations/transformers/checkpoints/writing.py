"""Directories of quantised models as other tools write them, and plain models of the same weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

Packer = Callable[[nn.Linear], tuple[dict[str, Tensor], Tensor]]
"""A linear -> tensors by their last names, and the `[out, in]` float32 weight that they stand for."""


def write(model: PreTrainedModel, directory: Path, about: dict[str, Any], packer: Packer) -> PreTrainedModel:
    """Write `model` with all linears but the head packed; returns a plain model of the dequantised weights."""
    plain = copy.deepcopy(model)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if not model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        for name, linear in plain.named_modules():
            if type(linear) is nn.Linear and name != "lm_head":
                packed, weight = packer(linear)
                linear.weight.copy_(weight)
                del tensors[f"{name}.weight"]
                tensors |= {f"{name}.{last}": tensor.contiguous() for last, tensor in packed.items()}
    directory.mkdir(exist_ok=True)
    model.config.save_pretrained(directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    configure(directory, about)
    return plain


def configure(directory: Path, about: dict[str, Any]) -> None:
    """Replace the directory's quantization_config."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": about}))


def change(directory: Path, name: str, tensor: Tensor | None) -> None:
    """Replace a tensor of the directory, or take it out."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    assert name in tensors
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


def grid(
    weight: Tensor, group_of: Tensor, *, symmetric: bool, scale_dtype: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round to 4 bits, the nearest level.

    Returns:
        `[out, in]` int64 levels 0..15, `[groups, out]` scales, `[groups, out]` int64 zero points, and `[out, in]`
        float32 weights on the grid.
    """
    scales, zeros = [], []
    for group in range(int(group_of.max()) + 1):
        part = weight[:, group_of == group].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scale = (2 * part.abs().amax(1) if symmetric else high - low) / 15
        scale = scale.clamp(min=1e-6).to(scale_dtype)
        scales.append(scale)
        zeros.append(torch.full_like(low, 8) if symmetric else (-low / scale.float()).round().clamp(0, 15))
    scale, zero = torch.stack(scales), torch.stack(zeros).long()
    s, z = scale.float()[group_of].t(), zero[group_of].t()
    levels = ((weight.float() / s).round() + z).clamp(0, 15).long()
    return levels, scale, zero, (levels - z) * s


def words(fields: Tensor) -> Tensor:
    """`[rows, 8 n]` values 0..15 to `[rows, n]` int32 words, the first in the lowest bits."""
    sums = sum(fields.long()[:, place::8] << 4 * place for place in range(8))
    assert isinstance(sums, Tensor)
    return (sums - (sums >= 2**31) * 2**32).to(torch.int32)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference in units of the expected values' standard deviation."""
    return float((found.double() - expected.double()).square().mean().sqrt() / expected.double().std())
