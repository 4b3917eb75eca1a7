"""Low-bit linears of other projects on a CPU, each where it is installed, as they are called without compilation.

    pip install --no-deps torchao bitsandbytes     # vLLM's operators come with its CPU build

Each maker takes weights `[out, size]` in float32 and gives a call on activations `[rows, size]` in float32 or, where
the project computes in bfloat16 alone, in that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.kernels.linear_w8a8 import quantize_weight

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Peer:
    """One way of another project to compute a linear layer.

    Attributes:
        name: as the results call it.
        make: from weights to a call.
        bits: of a stored weight.
        dtype: of the activations.
    """

    name: str
    make: Callable[[Tensor], Call]
    bits: int
    dtype: torch.dtype


def peers() -> Iterator[Peer]:
    """Those that are installed."""
    if importlib.util.find_spec("vllm"):
        yield Peer("vLLM W8A8 (oneDNN)", _vllm, 8, torch.float32)
    if importlib.util.find_spec("torchao"):
        yield Peer("torchao W8A8", _torchao, 8, torch.float32)
    if importlib.util.find_spec("bitsandbytes"):
        yield Peer("bitsandbytes 8-bit", _bitsandbytes_8, 8, torch.bfloat16)
        yield Peer("bitsandbytes nf4", _bitsandbytes_4, 4, torch.bfloat16)


def _vllm(weight: Tensor) -> Call:
    from vllm import _custom_ops as ops

    levels, scale = quantize_weight(weight)
    handler = ops.create_onednn_scaled_mm(levels.t(), scale.view(-1, 1), torch.float32, True, False)

    def call(x: Tensor) -> Tensor:
        quantized, step, _ = ops.onednn_scaled_int8_quant(x)
        return ops.onednn_scaled_mm(handler, quantized, x.new_empty(len(x), len(weight)), step, None, None, None)

    return call


def _torchao(weight: Tensor) -> Call:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    layer[0].weight = nn.Parameter(weight.clone(), requires_grad=False)
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    return layer


def _bitsandbytes_8(weight: Tensor) -> Call:
    import bitsandbytes

    return _loaded(bitsandbytes.nn.Linear8bitLt(*weight.t().shape, bias=False, has_fp16_weights=False), weight)


def _bitsandbytes_4(weight: Tensor) -> Call:
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(*weight.t().shape, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    return _loaded(layer, weight)


def _loaded(layer: nn.Module, weight: Tensor) -> Call:
    layer.load_state_dict({"weight": weight})
    return layer.to("cpu")  # which quantises
