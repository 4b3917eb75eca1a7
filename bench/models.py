"""The model of a benchmark, models made from it, and its weights as transformers keeps them in GGUF blocks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from trimtab.integrations.transformers.embedded import MODELS


def gguf_file(name: str) -> Path | None:
    """The GGUF file that `trimtab.load(name)` reads; None if the model does not come from one file."""
    if name in MODELS and len(MODELS[name].parts) == 1:
        package, inside = MODELS[name].parts[0]
        spec = find_spec(package)
        places = spec.submodule_search_locations if spec else None
        return Path(places[0], inside) if places else None
    return Path(name) if name.endswith(".gguf") else None


def load_packed(name: str, device: torch.device) -> tuple[PreTrainedModel | None, str]:
    """transformers' GGUF model with packed blocks, in float32; None and why, where there is none."""
    file = gguf_file(name)
    if file is None:
        return None, f"{name} does not come from one GGUF file"
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    packed = sum(type(module).__name__.startswith("Gguf") for module in model.modules())
    if not packed:
        # It would be `plain` under another name.
        return None, (
            "transformers unpacked every weight on loading: its packed matmuls need the package `kernels` and "
            "a kernel from the hub for this device"
        )
    return model.to(device).eval(), f"{packed} packed modules"


def first_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """A small model: the first layers of a large one."""
    return with_layers(model, range(count))


def with_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy that has only these layers; embedding and head are the model's own tensors."""
    shared = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    small = copy.deepcopy(model, {id(weight): weight for weight in shared})
    small.model.layers = torch.nn.ModuleList(small.model.layers[layer] for layer in layers)
    for place, layer in enumerate(small.model.layers):
        layer.self_attn.layer_idx = place
    small.config.num_hidden_layers = len(layers)
    if getattr(small.config, "layer_types", None):
        small.config.layer_types = [small.config.layer_types[layer] for layer in layers]
    return small


def perturbed(model: PreTrainedModel, seed: int, strength: float) -> PreTrainedModel:
    """An expert: the model with every matrix of its layers changed a little."""
    expert = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            if parameter.dim() > 1 and "layers" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(strength * parameter.std() * noise)
    return expert
