"""A lean forward pass over the weights of a transformers model.

A decoding step of a small model is bound by the host: transformers' modules cost as much time as the matrix
products. This file computes the same function with one call per operation, on the model's own parameters, for the
architectures listed in `SUPPORTED`; any other model runs through its own `forward` (runner.py). The low-bit copy of
a model runs through the same code with other linears.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...kernels.decoder_weights import DecoderWeights, LayerWeights, Linear, RMSNorm, linear_of
from ...kernels.native import decoder as native
from ...kernels.quantized_linear import Int8Linear, QuantizedLinear
from .state import Window

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""`config.model_type` of the models that the lean forward covers, each held to transformers' own logits by a test."""

NATIVE_TOKENS = {torch.float32: 128, torch.int8: 256}
"""Most tokens in one native step, by the type of the weights; beyond, torch's operators are as fast or faster."""

LinearFactory = Callable[[tuple[str, ...]], Linear]
"""Names of modules that read the same input -> one linear that computes all of them, side by side."""

_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_TORCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class RopeTable:
    """Cosines and signed sines of all positions so far, taken from the model's own rotary embedding."""

    def __init__(self, rotary: nn.Module, layer_type: str | None, like: Tensor) -> None:
        self._rotary, self._like = rotary, like
        self._extra = {} if layer_type is None else {"layer_type": layer_type}
        # replaced as a pair: another thread may be reading it
        self._table = (like.new_empty(0, 0), like.new_empty(0, 0))

    def __call__(self, window: Window) -> tuple[Tensor, Tensor]:
        """`[batch, window, head_dim]` each."""
        cos, sin = self._table
        if window.kv_length > len(cos):
            self._table = cos, sin = self._build(max(window.kv_length, 2 * len(cos), 256))
        return cos[window.positions], sin[window.positions]

    def _build(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self._like.device)[None]
        cos, sin = self._rotary(self._like, position_ids=positions, **self._extra)
        half = sin.shape[-1] // 2
        # rotate_half(x) is roll(x, half) with the first half negated; the sign is kept here, once.
        return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[batch, window, heads, head_dim]`."""
    return torch.addcmul(x * cos[:, :, None], x.roll(x.shape[-1] // 2, -1), sin[:, :, None])


class LeanDecoder:
    """Forward pass of a Llama-type model over the key-value state of a `Window`.

    Args:
        model: a causal LM that `supports` accepts. Its parameters are used where they lie, never copied.
        linears: makes the linear for a group of modules; the model's own weights by default.
    """

    def __init__(self, model: PreTrainedModel, linears: LinearFactory | None = None) -> None:
        core = model.model
        self.weights = decoder_weights(model, linears or partial(own_linear, model))
        self._embedding: nn.Module = core.embed_tokens
        like = core.embed_tokens.weight[:1, :1]
        typed = model.config.model_type == "gemma3_text"
        self._ropes = {
            kind: RopeTable(core.rotary_emb, kind if typed else None, like)
            for kind in {layer.rope for layer in self.weights.layers}
        }
        float32 = core.embed_tokens.weight.dtype == torch.float32
        self._native = native.NativeDecoder(self.weights) if float32 and native.supports(self.weights) else None
        low_bit = isinstance(self.weights.layers[0].down, Int8Linear)
        self._native_tokens = NATIVE_TOKENS[torch.int8 if low_bit else torch.float32]

    def __call__(self, tokens: Tensor, window: Window, select: Tensor | None = None) -> Tensor:
        """Logits `[batch, window, vocab]`, or with `select` (`[batch]` window indices) `[batch, vocab]`."""
        if self._native is not None and tokens.numel() <= self._native_tokens:
            return self._native_forward(self._native, tokens, window, select)
        batch, width = tokens.shape
        weights, activation = self.weights, _TORCH_ACTIVATIONS[self.weights.activation]
        x = self._embedding(tokens).view(batch * width, -1)
        ropes = {kind: rope(window) for kind, rope in self._ropes.items()}
        for index, layer in enumerate(weights.layers):
            y = self._attention(layer, index, layer.attention_norm(x), ropes[layer.rope], window)
            x = x + (y if layer.after_attention_norm is None else layer.after_attention_norm(y))
            gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, -1)
            y = layer.down(activation(gate).mul_(up))
            x = x + (y if layer.after_mlp_norm is None else layer.after_mlp_norm(y))
        if select is not None:
            return weights.head(weights.norm(x.view(batch, width, -1)[torch.arange(batch, device=x.device), select]))
        return weights.head(weights.norm(x)).view(batch, width, -1)

    def _native_forward(
        self, decoder: native.NativeDecoder, tokens: Tensor, window: Window, select: Tensor | None
    ) -> Tensor:
        batch, width = tokens.shape
        weights = self.weights
        keys, values = window.tensors(len(weights.layers), weights.kv_heads, weights.head_dim, torch.float32)
        index = torch.arange(batch * width) if select is None else torch.arange(batch) * width + select
        logits = decoder(
            self._embedding(tokens).view(batch * width, -1),
            torch.arange(batch).repeat_interleave(width),
            window.positions.flatten(),
            {
                kind: (cos.flatten(0, 1), sin.flatten(0, 1))
                for kind, rope in self._ropes.items()
                for cos, sin in [rope(window)]
            },
            keys,
            values,
            index,
            window.kv_length,
        )
        return logits if select is not None else logits.view(batch, width, -1)

    def _attention(
        self, layer: LayerWeights, index: int, x: Tensor, rope: tuple[Tensor, Tensor], window: Window
    ) -> Tensor:
        batch, width = window.positions.shape
        heads, kv_heads, head_dim = self.weights.heads, self.weights.kv_heads, self.weights.head_dim
        groups = heads // kv_heads
        qkv = layer.qkv(x).view(batch, width, heads + 2 * kv_heads, head_dim)
        if layer.query_norm is None or layer.key_norm is None:
            rotated = rotate(qkv[:, :, : heads + kv_heads], *rope)
            query, key = rotated[:, :, :heads], rotated[:, :, heads:]
        else:
            query = rotate(layer.query_norm(qkv[:, :, :heads]), *rope)
            key = rotate(layer.key_norm(qkv[:, :, heads : heads + kv_heads]), *rope)
        keys, values = window.write(index, key.transpose(1, 2), qkv[:, :, heads + kv_heads :].transpose(1, 2))
        # The query heads that share a key-value head become more rows of it: no copy of keys and values.
        query = query.view(batch, width, kv_heads, groups, head_dim).permute(0, 2, 3, 1, 4)
        out = F.scaled_dot_product_attention(
            query.reshape(batch, kv_heads, groups * width, head_dim),
            keys,
            values,
            attn_mask=window.additive_mask(layer.sliding_window, x.dtype, groups),
            scale=self.weights.scaling,
        )
        out = out.view(batch, kv_heads, groups, width, head_dim).permute(0, 3, 1, 2, 4)
        return layer.output(out.reshape(batch * width, heads * head_dim))


def supports(model: PreTrainedModel) -> bool:
    """Whether the lean forward computes what `model` does: known architecture, plain linears, fixed rotation."""
    config = model.config
    if getattr(config, "model_type", None) not in SUPPORTED or not hasattr(model, "lm_head"):
        return False
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return False
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = ropes.values() if all(isinstance(value, dict) for value in ropes.values()) else [ropes]
    if any(kind.get("rope_type", "default") in ("dynamic", "longrope") for kind in kinds):
        return False
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        return False
    if getattr(config, "use_bidirectional_attention", False) or _activation(model) not in _ACTIVATIONS:
        return False
    linears = [model.get_submodule(name) for group in linear_groups(model) for name in group]
    return all(type(linear) is nn.Linear or isinstance(linear, QuantizedLinear) for linear in linears)


def linear_groups(model: PreTrainedModel) -> list[tuple[str, ...]]:
    """Names of the linears of a supported model, those that read the same input together; the head is last."""
    groups: list[tuple[str, ...]] = []
    for index in range(model.config.num_hidden_layers):
        groups += _layer_groups(index)
    return [*groups, ("lm_head",)]


def _layer_groups(index: int) -> tuple[tuple[str, ...], ...]:
    block = f"model.layers.{index}"
    return (
        tuple(f"{block}.self_attn.{name}_proj" for name in "qkv"),
        (f"{block}.self_attn.o_proj",),
        (f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj"),
        (f"{block}.mlp.down_proj",),
    )


def decoder_weights(model: PreTrainedModel, linears: LinearFactory) -> DecoderWeights:
    """The weights of a supported model, its linears made by `linears`."""
    config, attention = model.config, model.model.layers[0].self_attn
    return DecoderWeights(
        layers=tuple(_layer(model, index, linears) for index in range(config.num_hidden_layers)),
        norm=_norm(model.model.norm),
        head=linears(("lm_head",)),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        activation=_ACTIVATIONS[_activation(model)],
        scaling=attention.scaling,
    )


def _activation(model: PreTrainedModel) -> str:
    name: str = getattr(model.config, "hidden_activation", None) or model.config.hidden_act
    return name


def _layer(model: PreTrainedModel, index: int, linears: LinearFactory) -> LayerWeights:
    config, block = model.config, model.model.layers[index]
    qkv, output, gate_up, down = (linears(group) for group in _layer_groups(index))
    types = getattr(config, "layer_types", None)
    kind = types[index] if types else "full_attention"
    sliding = kind == "sliding_attention" or (not types and getattr(config, "sliding_window", None) is not None)
    # Gemma wraps attention and MLP in norms on both sides; its names for them differ from Llama's.
    sandwich = hasattr(block, "pre_feedforward_layernorm")
    return LayerWeights(
        attention_norm=_norm(block.input_layernorm),
        qkv=qkv,
        query_norm=_optional_norm(block.self_attn, "q_norm"),
        key_norm=_optional_norm(block.self_attn, "k_norm"),
        output=output,
        after_attention_norm=_norm(block.post_attention_layernorm) if sandwich else None,
        mlp_norm=_norm(block.pre_feedforward_layernorm if sandwich else block.post_attention_layernorm),
        gate_up=gate_up,
        down=down,
        after_mlp_norm=_norm(block.post_feedforward_layernorm) if sandwich else None,
        sliding_window=config.sliding_window if sliding else None,
        rope=kind if config.model_type == "gemma3_text" else "full_attention",
    )


def _norm(module: Any) -> RMSNorm:
    if type(module).__name__.startswith("Gemma"):
        return RMSNorm(1.0 + module.weight.float(), module.eps, rounded_first=False)
    return RMSNorm(module.weight, module.variance_epsilon, rounded_first=True)


def _optional_norm(parent: nn.Module, name: str) -> RMSNorm | None:
    return _norm(getattr(parent, name)) if hasattr(parent, name) else None


def own_linear(model: PreTrainedModel, names: tuple[str, ...]) -> Linear:
    """The model's own weights of modules that read the same input, as they lie."""
    return linear_of([model.get_submodule(name) for name in names])
