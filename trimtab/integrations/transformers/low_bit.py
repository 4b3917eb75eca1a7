"""Low-bit copies of a model's linear layers, and the forward pass that uses them."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ...errors import InputError
from ...kernels import linear_w4a16 as w4
from ...kernels.linear_w8a8 import ActivationBits
from ...kernels.quantize import Bits, quantize_linear
from ...kernels.quantized_linear import Int4Linear, Int8Linear, QuantizedLinear
from . import decoder
from .module_forward import ModuleForward, check_supported
from .runner import Forward

FORMAT = 2
"""Version of the saved file; raised when its meaning changes."""

_PROBE_TOKENS = (4, 128)
_QUIET_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class LowBitConfig:
    """How a model is quantised.

    Attributes:
        bits: of the weights, 8 or 4.
        activation_bits: with 8-bit weights, 8 (the paper's W8A8) or 16 (two int8 planes).
        outliers: input channels of each linear kept in full precision.
        head: quantise the output head too.
    """

    bits: Bits = 8
    activation_bits: ActivationBits = 16
    outliers: int = 32
    head: bool = False


class LowBitModel:
    """The linears of one model in low bits; everything else is the model's own.

    Made by `quantize` or `load`. `forward` is what a `Runner` needs.

    Attributes:
        linears: by the names of the linears that each takes the place of; empty if the model's own are in low bits.
    """

    def __init__(self, model: PreTrainedModel, config: LowBitConfig, linears: dict[str, QuantizedLinear]) -> None:
        self.config = config
        self.linears = linears
        self.forward = _forward(model, linears)

    @classmethod
    @torch.no_grad()
    def quantize(cls, model: PreTrainedModel, config: LowBitConfig | None = None) -> LowBitModel:
        """Quantise the linears of `model`; needs no data.

        The outlier channels are found with random token ids: they are a property of the weights, and text finds the
        same quality (docs/quantized-verification.md has the comparison).

        A model whose linears are in low bits already (`quantize_`, `load_quantized`) is taken as it is: nothing is
        rounded twice, `linears` is empty, and `forward` computes what the model does.

        Args:
            model: a causal LM that a `Runner` supports. It is not changed.
            config: the format, 8 bits by default.

        Raises:
            InputError: the model cannot be run, or has no linear that can be quantised.
        """
        config = config or LowBitConfig()
        check_supported(model)
        if any(isinstance(module, QuantizedLinear) for module in model.modules()):
            return cls(model, config, {})
        groups = _groups(model, config)
        magnitudes = _input_magnitudes(model, [group[0] for group in groups]) if config.outliers else {}
        linears = {}
        # Small models are done before a bar could be read; large ones take minutes and should say so.
        for group in tqdm(groups, desc=f"quantising to {config.bits} bits", delay=_QUIET_SECONDS, leave=False):
            modules = [model.get_submodule(name) for name in group]
            linears[_key(group)] = quantize_linear(
                [module.weight for module in modules],
                [module.bias for module in modules],
                bits=config.bits,
                activation_bits=config.activation_bits,
                magnitude=magnitudes.get(group[0]),
                outliers=config.outliers,
            )
        return cls(model, config, linears)

    def save(self, path: str | Path) -> None:
        """Write the low-bit weights to one safetensors file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{key}|{name}": tensor.contiguous()
            for key, linear in self.linears.items()
            for name, tensor in linear.state_dict().items()
        }
        about = {"format": FORMAT, "config": asdict(self.config)}
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            whole = Path(scratch) / path.name
            save_file(tensors, whole, metadata={"trimtab": json.dumps(about)})
            os.replace(whole, path)

    @classmethod
    def load(cls, model: PreTrainedModel, path: str | Path) -> LowBitModel:
        """Read what `save` wrote, for the same model.

        Raises:
            InputError: no such file, not a file of trimtab's, or made for another model.
        """
        check_supported(model)
        remedy = "make it again with LowBitModel.quantize(model).save(path)"
        try:
            with safe_open(path, "pt", device=str(model.device)) as file:
                about = json.loads((file.metadata() or {}).get("trimtab", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"low-bit weights {path} cannot be read ({error}): {remedy}") from error
        if about.get("format") != FORMAT:
            raise InputError(f"{path} is not a low-bit file of this version of trimtab: {remedy}")
        config = LowBitConfig(**about["config"])
        linears = {}
        for group in _groups(model, config):
            key = _key(group)
            state = {name.split("|")[1]: tensor for name, tensor in tensors.items() if name.split("|")[0] == key}
            shape = (
                sum(model.get_submodule(name).out_features for name in group),
                model.get_submodule(group[0]).in_features,
            )
            linears[key] = _restore(key, state, config, shape, path, remedy)
        return cls(model, config, linears)


def _restore(
    key: str,
    state: dict[str, Tensor],
    config: LowBitConfig,
    shape: tuple[int, int],
    path: str | Path,
    remedy: str,
) -> QuantizedLinear:
    try:
        shared = (state["outliers"], state["outlier_weight"], state.get("bias"))
        if config.bits == 8:
            fits = tuple(state["weight"].shape) == shape
            linear: QuantizedLinear = Int8Linear(state["weight"], state["scale"], *shared, config.activation_bits)
        else:
            fits = len(state["packed"]) == shape[0] and len(state["scales_zeros"]) * w4.GROUP == shape[1]
            linear = Int4Linear(state["packed"], state["scales_zeros"], shape[1], *shared)
    except KeyError as error:
        raise InputError(f"{path} has no {error} for {key}, it was made for another model: {remedy}") from error
    if not fits:
        raise InputError(f"{path} holds {key} in another shape than the model's {list(shape)}: {remedy}")
    return linear


def _groups(model: PreTrainedModel, config: LowBitConfig) -> list[tuple[str, ...]]:
    """Names of the linears to quantise; those that read the same input together where the lean forward is used."""
    head = model.get_output_embeddings()
    if decoder.supports(model):
        groups = decoder.linear_groups(model)
        return groups if config.head else groups[:-1]
    names: list[tuple[str, ...]] = [
        (name,)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and (config.head or module is not head)
    ]
    if not names:
        raise InputError(
            f"model {type(model).__name__} has no torch.nn.Linear to quantise (already quantised?): use bits=16"
        )
    return names


def _forward(model: PreTrainedModel, linears: dict[str, QuantizedLinear]) -> Forward:
    if decoder.supports(model):
        return decoder.LeanDecoder(model, lambda group: linears.get(_key(group)) or decoder.own_linear(model, group))
    # A copy of the module tree that shares every parameter, with the quantised linears put in.
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, shared)
    for key, linear in linears.items():
        twin.set_submodule(key, linear)
    return ModuleForward(twin)


def _key(group: tuple[str, ...]) -> str:
    return "+".join(group)


def _input_magnitudes(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """Largest absolute input in each channel of the named linears, over random token ids."""
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen = inputs[0].detach().abs().flatten(0, -2).amax(0).float()
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        return model.get_submodule(name).register_forward_hook(hook)

    generator = torch.Generator().manual_seed(0)
    vocab = model.get_input_embeddings().weight.shape[0]
    probe = torch.randint(vocab, _PROBE_TOKENS, generator=generator).to(model.device)
    handles = [watch(name) for name in names]
    try:
        model(input_ids=probe, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return largest
