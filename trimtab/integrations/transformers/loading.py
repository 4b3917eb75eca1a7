"""`load`: a model and its tokenizer by one name, wherever they are kept."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ...errors import InputError
from .causal import check_causal
from .conversion_cache import converted, file_fingerprint, say
from .embedded import MODELS, embedded_directory
from .gguf_conversion import convert
from .gguf_header import read_header
from .optional import require
from .quantized_checkpoint import is_readable, load_quantized

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Loaded(NamedTuple):
    """What `load` returns: `model, tokenizer = load(...)`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Loaded:
    """Load a decoder-only language model and its tokenizer.

    A directory of `save_quantized`, or with compressed-tensors, GPTQ or AWQ weights, stays in low bits: see
    `load_quantized`. A GGUF file, embedded or your own, is dequantized once and kept as a transformers directory under
    `$TRIMTAB_CACHE` (else `~/.cache/trimtab`); progress goes to stderr.

    Args:
        name: an embedded model ("smollm2-135m", "gemma3-270m"), a directory, a .gguf file, or the id of a
            model on the Hugging Face hub.
        dtype: "float32", "bfloat16" or "float16"; None is float32 on the CPU, where half precision is slow,
            and the checkpoint's own elsewhere.
        device: where the model goes; None is "cuda" if there is one, else "cpu".

    Returns:
        The model, in eval mode, and its tokenizer.

    Raises:
        InputError: an argument cannot be used, a package is missing, a file is damaged, or the model is not
            a decoder-only language model.
    """
    chosen_device = _device(device)
    chosen_dtype = _dtype(dtype, chosen_device)
    where = resolve(name)
    shown = str(name)
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # of many kinds, from the hub's client to the parser of config.json
        raise (_unloadable if Path(where).is_dir() else _not_found)(shown, error) from error
    check_causal(config, shown)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # tokenizers raises its own, and bare ones
        raise _unloadable(shown, error) from error
    if is_readable(Path(where)):
        return Loaded(load_quantized(where, dtype=chosen_dtype, device=chosen_device), tokenizer)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            where, config=config, dtype=chosen_dtype, output_loading_info=True
        )
    except Exception as error:  # safetensors raises its own, and bare ones
        raise _unloadable(shown, error) from error
    if missing := sorted(info["missing_keys"]):  # transformers fills them with noise and goes on
        raise InputError(f"{shown!r} lacks {len(missing)} weights of its model, such as {missing[0]}")
    return Loaded(model.to(chosen_device).eval(), tokenizer)


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)  # the only test that holds for every kind of device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(f"device={device!r} cannot be used ({_first_line(error)}): try 'cpu'") from error
    return chosen


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in _DTYPES.values():
        raise InputError(f"dtype={dtype!r} is not one of {', '.join(_DTYPES)}")
    assert chosen is not None
    return chosen


def resolve(name: str | os.PathLike[str]) -> str:
    """A directory for transformers to load, or the id of a model on the hub.

    Raises:
        InputError: the name is of neither.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip():
        raise InputError(f"name={name!r} is not a model's name: give one of {_listed()}, a path, or a hub id")
    if isinstance(name, str) and name in MODELS:
        return str(embedded_directory(name))
    path = Path(name).expanduser()
    if path.is_file():
        return str(_gguf_directory(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            ggufs = sorted(path.glob("*.gguf"))
            remedy = f"load({str(ggufs[0])!r})" if ggufs else "give the directory that save_pretrained wrote"
            raise InputError(f"directory {str(name)!r} has no config.json: {remedy}")
        return str(path.resolve())
    looks_like_path = isinstance(name, os.PathLike) or str(name).startswith(("/", "./", "../", "~"))
    if looks_like_path or path.suffix == ".gguf":
        raise InputError(f"there is no file or directory {str(name)!r} (working directory: {Path.cwd()})")
    return str(name)


def _gguf_directory(path: Path) -> Path:
    source = path.resolve()
    require("gguf", "accelerate", purpose=f"loading {str(path)!r}")
    try:
        read_header(source)  # before the cache directory is made or another process waited for
        fingerprint = file_fingerprint(source)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return converted(source.stem, fingerprint, lambda target: convert(source, target, say))


def _not_found(name: str, error: Exception) -> InputError:
    near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.5)
    hint = f" - did you mean {near[0]!r}?" if near else ""
    return InputError(
        f"{name!r} is no embedded model ({_listed()}), no directory and no file, and could not be loaded "
        f"from the hub as an id ({_first_line(error)}){hint}"
    )


def _unloadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name!r} cannot be loaded: {_first_line(error)}")


def _listed() -> str:
    return ", ".join(repr(name) for name in MODELS)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(" .:")
