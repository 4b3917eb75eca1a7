"""Turning a GGUF file into a transformers directory that loads to the same weights and the same tokens.

transformers 5 reads weights and configuration of a GGUF file well; of the tokenizer it leaves out what the
file says about `<bos>`, and for some vocabularies how numbers are split. Both are mended here.

Raises InputError on import where transformers is older than its present GGUF reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from ...errors import InputError
from .causal import check_causal
from .gguf_header import GgufHeader, read_header

try:
    from transformers import GgufConfig
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
except ImportError as error:
    raise InputError(
        f"GGUF files need transformers 5.18 or newer and {transformers.__version__} is installed: "
        'pip install "transformers>=5.18,<5.20", or give a model in safetensors'
    ) from error

_DIGIT_SPLITTING = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
"""Values of `tokenizer.ggml.pre` for which llama.cpp cuts every digit off before the GPT-2 pattern."""


def convert(source: Path, target: Path, say: Callable[[str], None]) -> None:
    """Write the model and the tokenizer of a GGUF file into the empty directory `target`.

    Args:
        source: a GGUF file.
        target: where config.json, model.safetensors and the tokenizer's files go.
        say: called with one line before each step.

    Raises:
        InputError: the file is damaged, or holds a model or a tokenizer that cannot be read.
    """
    header = read_header(source)
    try:
        say("[1/4] reading the configuration")
        config = _read_config(source)
        check_causal(config, str(source))
        _warn_of_rope_scaling(config, header, say)
        say("[2/4] reading the tokenizer")
        tokenizer = read_tokenizer(source, header)
        say("[3/4] reading the weights")
        model = read_model(source, config)
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"GGUF file {str(source)!r} cannot be read: {reason}") from error
    say("[4/4] saving")
    model.to(smallest_lossless_dtype(model)).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _read_config(source: Path) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(str(source.parent), gguf_file=source.name)
    # The file's `general.name` ("Gemma 3 270m") lands in the configuration as an attribute of no use.
    config.__dict__.pop("_model_name_or_path", None)
    return config


def read_model(source: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a GGUF file in float32, with no trace of the quantization left on it.

    Raises:
        InputError: the file lacks weights that the model needs.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        config=config,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"GGUF file {str(source)!r} lacks {len(missing)} weights of its model, such as {missing[0]}")
    # Dense by now, but transformers would refuse to save it, or save it as quantized and load it wrongly.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    loaded: PreTrainedModel = model
    return loaded


def read_tokenizer(source: Path, header: GgufHeader) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file; it adds `<bos>` and `<eos>` when the file says so."""
    architecture, parts, settings = get_gguf_tokenizer(str(source))
    backend, _ = convert_gguf_tokenizer(architecture, parts)
    pre = header.metadata.get("tokenizer.ggml.pre")
    if pre in _DIGIT_SPLITTING:
        # transformers has no entry for these and falls back on GPT-2's pattern alone, under which a space
        # clings to the digit after it: "x =  12" would come out as other tokens than those of training.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    options: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    if architecture.startswith("gemma"):
        options["padding_side"] = "left"  # as in Gemma's own tokenizer_config.json
    # transformers drops these two keys; Gemma without its <bos> degenerates into repetition.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=_flag(header, "add_bos_token", default=_adds_bos_by_default(header)),
        add_eos_token=_flag(header, "add_eos_token", default=False),
        **options,
    )


def _flag(header: GgufHeader, name: str, *, default: bool) -> bool:
    return bool(header.metadata.get(f"tokenizer.ggml.{name}", default))


def _adds_bos_by_default(header: GgufHeader) -> bool:
    # llama.cpp's defaults for files that do not say: SentencePiece vocabularies and Llama 3's start with <bos>.
    metadata = header.metadata
    return metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"


def _warn_of_rope_scaling(config: PreTrainedConfig, header: GgufHeader, say: Callable[[str], None]) -> None:
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    scaled = scaling != "none" or "rope_freqs.weight" in header.tensors
    if scaled and "default" in str(getattr(config, "rope_parameters", None)):
        say("warning: transformers does not read this file's rope scaling; long contexts will come out worse")


def smallest_lossless_dtype(model: PreTrainedModel) -> torch.dtype:
    """bfloat16 or float16 when every weight survives the trip, else float32.

    Block-quantized weights are scale times integer and need float32; files of half-precision weights do not.
    """
    weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in weights):
            return dtype
    return torch.float32
