"""Load a member of the family, or write it as a directory that any program of transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import trimtab
from bench.models import with_layers
from trimtab.kernels.linear_w8a8 import quantize_weight

LARGE = "smollm2-135m"
WEIGHTS = Path(__file__).parent / "weights"
Member = Literal["large", "base", "extract", "record", "large-extract", "large-record", "large-questions"]
MEMBERS: tuple[Member, ...] = get_args(Member)
"""The large model and the small base; experts of the base; experts of the large model."""


def load_members(*names: Member) -> tuple[dict[Member, PreTrainedModel], PreTrainedTokenizerBase]:
    """Members by name, in float32, and their tokenizer. Embedding and head are one tensor for all of them."""
    large, tokenizer = trimtab.load(LARGE)
    found: dict[Member, PreTrainedModel] = {"large": large}
    layers = list(range(large.config.num_hidden_layers))
    for name in names:
        if name == "base":
            found[name] = _base(large)
        elif name.startswith("large-"):
            found[name] = _adapted(with_layers(large, layers), WEIGHTS / name)
        elif name != "large":
            found[name] = _adapted(_base(large), WEIGHTS / name)
    return {name: found[name] for name in names}, tokenizer


def save_base(small: PreTrainedModel, layers: list[int]) -> None:
    """Write the base's layers and final norm: matrices in 8 bits a channel, the rest in float16."""
    packed: dict[str, Tensor] = {}
    for name, weight in _own(small).items():
        if weight.ndim == 2:
            packed[name], packed[f"{name}.scale"] = quantize_weight(weight)
        else:
            packed[name] = weight.half()
    metadata = {"layers": json.dumps(layers), "large": LARGE, "licence": "Apache-2.0"}
    save_file({name: weight.contiguous() for name, weight in packed.items()}, WEIGHTS / "base.safetensors", metadata)


def _base(large: PreTrainedModel) -> PreTrainedModel:
    file = WEIGHTS / "base.safetensors"
    packed = load_file(file)
    with safe_open(file, framework="pt") as opened:
        layers = json.loads(opened.metadata()["layers"])
    small = with_layers(large, layers)
    with torch.no_grad():
        for name, weight in _own(small).items():
            scale = packed.get(f"{name}.scale")
            weight.copy_(packed[name].float() if scale is None else packed[name].float() * scale.view(-1, 1))
    return small


def _adapted(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge a PEFT LoRA adapter: `W + alpha / r * B A`."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    factors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name, first in factors.items():
            if name.endswith(".lora_A.weight"):
                second = factors[name.replace("lora_A", "lora_B")]
                linear = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                linear.weight += config["lora_alpha"] / config["r"] * (second.float() @ first.float())
    return model


def _own(small: PreTrainedModel) -> dict[str, Tensor]:
    """Weights that the base does not share with the large model."""
    return {
        name: weight
        for name, weight in small.named_parameters()
        if "embed_tokens" not in name and "lm_head" not in name
    }
