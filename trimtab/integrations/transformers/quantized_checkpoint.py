"""Models whose linears are in low bits, on disk: saved by trimtab, or made by others."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import InputError
from ...kernels.quantized_linear import QuantizedLinear
from .causal import check_causal
from .checkpoints import own
from .checkpoints.awq import Awq
from .checkpoints.compressed_tensors import CompressedTensors
from .checkpoints.formats import Checkpoint
from .checkpoints.gptq import Gptq
from .checkpoints.tensor_files import TensorFiles

FORMATS: dict[str, type[Checkpoint]] = {
    own.METHOD: own.Own,
    "compressed-tensors": CompressedTensors,
    "gptq": Gptq,
    "awq": Awq,
}
"""By `quantization_config.quant_method` of config.json."""


def save_quantized(
    model: PreTrainedModel, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write a model that `quantize_` or `load_quantized` made; the same model gives the same bytes.

    Args:
        model: with low-bit linears.
        directory: made if it is not there; config.json, generation_config.json and model.safetensors are replaced.
        tokenizer: saved beside it, so that `trimtab.load(directory)` finds both.

    Raises:
        InputError: no linear of the model is in low bits, or the directory cannot be written.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    if not linears:
        raise InputError(f"model {type(model).__name__} has no linear in low bits: call quantize_, or save_pretrained")
    tensors: dict[str, Tensor] = {}
    kept: set[tuple[int, int]] = set()  # of tied weights the first
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.numel())
        if name.rpartition(".")[0] in linears:
            if tensor.numel():  # no outliers: no tensor
                tensors[name] = tensor
        elif place not in kept:
            kept.add(place)
            tensors[name] = tensor
    config = json.loads(model.config.to_json_string())
    config.pop("_name_or_path", None)  # where it came from is no part of the model
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    config["quantization_config"] = {
        "quant_method": own.METHOD,
        "version": own.VERSION,
        "modules": {name: own.format_of(module) for name, module in linears.items()},
    }
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            _write(Path(scratch), config, tensors, model.generation_config if model.can_generate() else None)
            for file in sorted(Path(scratch).iterdir()):
                os.replace(file, target / file.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
    except OSError as error:
        raise InputError(f"directory {str(directory)!r} cannot be written: {error.strerror or error}") from error


def load_quantized(
    directory: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto", device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Read a model with low-bit linears; `trimtab.load` does, and its tokenizer with it.

    Args:
        directory: from `save_quantized`; or with compressed-tensors (W8A8 of integers, W4A16), GPTQ or AWQ weights of
            4 bits, as config.json says, in safetensors files.
        dtype: of everything that is not in low bits: a torch dtype, or "auto" for the checkpoint's own.
        device: where the model goes.

    Returns:
        The model in eval mode; its low-bit linears are `QuantizedLinear` modules.

    Raises:
        InputError: no such directory, a format or a setting that trimtab does not read, or tensors that are missing,
            damaged or of the wrong size; the message names the file, the tensor and the rule.
    """
    path = Path(directory).expanduser()
    about = quantization_of(path)
    if about is None:
        raise InputError(f"{path / 'config.json'} has no quantization_config: load it with trimtab.load")
    method = about.get("quant_method")
    if method not in FORMATS:
        raise InputError(
            f"{path / 'config.json'}: quantization_config has quant_method {method!r}: "
            f"trimtab reads {', '.join(FORMATS)}"
        )
    checkpoint = FORMATS[method](about, TensorFiles(path))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # of many kinds
        raise _unloadable(path, error) from error
    check_causal(config, str(directory))
    del config.quantization_config
    model, names = _without(config, checkpoint, path, dtype)
    for name, linear in names.items():
        model.set_submodule(name, checkpoint.read(name, linear))
    if model.can_generate() and (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.to(device).eval()


def is_readable(directory: Path) -> bool:
    """Whether it is a directory of a quantised model whose format `load_quantized` knows."""
    return directory.is_dir() and (quantization_of(directory) or {}).get("quant_method") in FORMATS


def quantization_of(directory: Path) -> dict[str, Any] | None:
    """`quantization_config` of a directory's config.json; None if it has none.

    Raises:
        InputError: no config.json, or a damaged one.
    """
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"directory {str(directory)!r} has no config.json that can be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): download it again") from error
    about = config.get("quantization_config") if isinstance(config, dict) else None
    return about if isinstance(about, dict) else None


def _without(
    config: Any, checkpoint: Checkpoint, path: Path, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, dict[str, nn.Linear]]:
    """The model with everything loaded but its low-bit linears, and these as empty modules of their sizes."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    linears = _linears(skeleton, checkpoint)
    head = skeleton.get_output_embeddings()
    if any(linear is head for linear in linears.values()):
        config.tie_word_embeddings = False  # a head in low bits is no embedding
    architecture = type(skeleton)
    del skeleton

    # transformers makes every module that a checkpoint lacks anew, with memory and noise; these are not to be made.
    class Hollow(architecture):  # type: ignore[misc, valid-type]
        _keys_to_ignore_on_load_unexpected = [
            *(architecture._keys_to_ignore_on_load_unexpected or ()),
            *(rf"^{re.escape(name)}\." for name in linears),
        ]

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for name in linears:
                self.set_submodule(name, nn.Identity())

    Hollow.__name__ = Hollow.__qualname__ = architecture.__name__
    try:
        model, info = Hollow.from_pretrained(path, config=config, dtype=dtype, output_loading_info=True)
    except Exception as error:  # safetensors and transformers raise their own, and bare ones
        raise _unloadable(path, error) from error
    model.__class__ = architecture
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{str(path)!r} lacks {len(missing)} weights of its model, such as {missing[0]}")
    for linear in linears.values():
        linear.to(model.dtype)
    return model, linears


def _linears(skeleton: nn.Module, checkpoint: Checkpoint) -> dict[str, nn.Linear]:
    modules: Mapping[str, nn.Module] = dict(skeleton.named_modules(remove_duplicate=False))
    linears = {}
    for name in sorted(checkpoint.quantized()):
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            what = "has no such module" if module is None else f"has {type(module).__name__} there, no linear"
            raise InputError(
                f"{checkpoint.tensors.directory} holds {name} in low bits, {type(skeleton).__name__} {what}: "
                "config.json is that of another model"
            )
        linears[name] = module
    if not linears:
        raise InputError(f"{checkpoint.tensors.directory} has a quantization_config and no linear in low bits")
    return linears


def _unloadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{str(path)!r} cannot be loaded: {' '.join(str(error).split())[:300] or type(error).__name__}")


def _write(
    scratch: Path, config: dict[str, Any], tensors: dict[str, Tensor], generation: GenerationConfig | None
) -> None:
    save_file(
        {name: _alone(tensor) for name, tensor in tensors.items()},
        scratch / "model.safetensors",
        metadata={"format": "pt"},
    )
    (scratch / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if generation is not None:
        generation.save_pretrained(scratch)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own, which safetensors insists on."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
