"""The whole decoder step of `decoder.c` over the caller's tensors."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder_weights import DecoderWeights, FloatLinear, LayerWeights, Linear, RMSNorm
from ..quantized_linear import Int8Linear
from .build import library
from .linear import packed

HEAD_DIMS = (32, 64, 128, 256)
"""Head dimensions that decoder.c has attention for."""

_ACTIVATIONS = ("silu", "gelu_tanh")
_VECTOR = 16
_CHUNK = 32  # ROWS of linear.h
_MAX_OUTLIERS = 64  # MAX_OUTLIERS of linear.h
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class _Part(ctypes.Structure):
    _fields_ = [
        ("kind", _INT), ("out_features", _INT), ("weight", _POINTER), ("scale", _POINTER), ("bias", _POINTER),
        ("outlier_weight", _POINTER),
    ]  # fmt: skip


class _Linear(ctypes.Structure):
    _fields_ = [
        ("parts", _INT), ("in_features", _INT), ("outliers", _INT), ("planes", _INT), ("outlier_index", _POINTER),
        ("part", _Part * 3),
    ]  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        ("qkv", _Linear), ("output", _Linear), ("gate_up", _Linear), ("down", _Linear), ("attention_norm", _POINTER),
        ("query_norm", _POINTER), ("key_norm", _POINTER), ("after_attention_norm", _POINTER), ("mlp_norm", _POINTER),
        ("after_mlp_norm", _POINTER), ("sliding_window", _INT), ("rope", _INT),
    ]  # fmt: skip


class _Decoder(ctypes.Structure):
    _fields_ = [
        ("hidden", _INT), ("intermediate", _INT), ("heads", _INT), ("kv_heads", _INT), ("head_dim", _INT),
        ("layers", _INT), ("activation", _INT), ("eps", _FLOAT), ("scaling", _FLOAT), ("norm", _POINTER),
        ("layer", ctypes.POINTER(_Layer)), ("head", _Linear),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("tokens", _INT), ("selected", _INT), ("threads", _INT), ("capacity", _LONG), ("longest", _LONG),
        ("row", _POINTER), ("position", _POINTER), ("select", _POINTER), ("cos", _POINTER * 2), ("sin", _POINTER * 2),
        ("keys", ctypes.POINTER(_POINTER)), ("values", ctypes.POINTER(_POINTER)), ("x", _POINTER),
        ("logits", _POINTER), ("scratch", _POINTER),
    ]  # fmt: skip


class NativeDecoder:
    """The decoder in one C call; float32 on the CPU, int8 or float32 linears.

    Args:
        weights: what `supports` accepts; its float tensors are kept and used in place, its int8 weights packed.
    """

    def __init__(self, weights: DecoderWeights) -> None:
        native = library()
        assert native is not None, "ask supports() first"
        self._step = native.step
        self._step.argtypes, self._step.restype = [ctypes.POINTER(_Decoder), ctypes.POINTER(_Step)], None
        self._scratch_floats = native.scratch_floats
        self._scratch_floats.argtypes = [ctypes.POINTER(_Decoder), _LONG, _LONG, _LONG]
        self._scratch_floats.restype = ctypes.c_size_t
        # C holds bare addresses: every tensor that it may read has to stay alive, and where it is
        self._kept: list[Tensor] = []
        self.ropes = sorted({layer.rope for layer in weights.layers})
        self._layers = (_Layer * len(weights.layers))(*map(self._layer, weights.layers))
        self._vocab = sum(part.out_features for part in self._parts(weights.head))
        self._decoder = _Decoder(
            hidden=len(weights.norm.weight),
            intermediate=sum(part.out_features for part in self._parts(weights.layers[0].gate_up)) // 2,
            heads=weights.heads,
            kv_heads=weights.kv_heads,
            head_dim=weights.head_dim,
            layers=len(weights.layers),
            activation=_ACTIVATIONS.index(weights.activation),
            eps=weights.norm.eps,
            scaling=weights.scaling,
            norm=self._address(weights.norm.weight),
            layer=self._layers,
            head=self._linear(weights.head),
        )
        # one decoder serves several generations at once; each thread needs working memory of its own
        self._local = threading.local()

    def __call__(
        self,
        x: Tensor,
        rows: Tensor,
        positions: Tensor,
        ropes: Mapping[str, tuple[Tensor, Tensor]],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        select: Tensor,
        longest: int,
    ) -> Tensor:
        """Run the tokens of a step, writing their keys and values.

        Args:
            x: `[tokens, hidden]` float32 embeddings; overwritten.
            rows: `[tokens]` int64 row of the batch.
            positions: `[tokens]` int64.
            ropes: cosine and signed sine `[tokens, head_dim]` float32 for each kind of rotary embedding.
            keys: `[batch, kv_heads, capacity, head_dim]` float32 of each layer.
            values: the same.
            select: `[selected]` int64 tokens whose logits are wanted.
            longest: the most keys that any token sees.

        Returns:
            `[selected, vocab]` float32.
        """
        threads = torch.get_num_threads()
        needed = self._scratch_floats(self._decoder, len(x), longest, threads)
        scratch: Tensor | None = getattr(self._local, "scratch", None)
        if scratch is None or len(scratch) < needed:
            self._local.scratch = scratch = torch.empty(needed)
        logits = torch.empty(len(select), self._vocab)
        tables = [ropes[kind] for kind in self.ropes]
        pointers = _POINTER * len(keys)
        step = _Step(
            tokens=len(x),
            selected=len(select),
            threads=threads,
            capacity=keys[0].shape[2],
            longest=longest,
            row=rows.data_ptr(),
            position=positions.data_ptr(),
            select=select.data_ptr(),
            cos=(_POINTER * 2)(*(cos.data_ptr() for cos, _ in tables)),
            sin=(_POINTER * 2)(*(sin.data_ptr() for _, sin in tables)),
            keys=pointers(*(layer.data_ptr() for layer in keys)),
            values=pointers(*(layer.data_ptr() for layer in values)),
            x=x.data_ptr(),
            logits=logits.data_ptr(),
            scratch=scratch.data_ptr(),
        )
        self._step(self._decoder, step)
        return logits

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: RMSNorm | None) -> int | None:
        return None if norm is None else self._address(norm.weight)

    def _layer(self, layer: LayerWeights) -> _Layer:
        return _Layer(
            qkv=self._linear(layer.qkv),
            output=self._linear(layer.output),
            gate_up=self._linear(layer.gate_up),
            down=self._linear(layer.down),
            attention_norm=self._norm(layer.attention_norm),
            query_norm=self._norm(layer.query_norm),
            key_norm=self._norm(layer.key_norm),
            after_attention_norm=self._norm(layer.after_attention_norm),
            mlp_norm=self._norm(layer.mlp_norm),
            after_mlp_norm=self._norm(layer.after_mlp_norm),
            sliding_window=layer.sliding_window or 0,
            rope=self.ropes.index(layer.rope),
        )

    def _linear(self, linear: Linear) -> _Linear:
        parts = self._parts(linear)
        if isinstance(linear, FloatLinear):
            return _Linear(parts=len(parts), in_features=linear.weights[0].shape[1], part=(_Part * 3)(*parts))
        assert isinstance(linear, Int8Linear)
        return _Linear(
            parts=1,
            in_features=linear.weight.shape[1],
            outliers=len(linear.outliers),
            planes=linear.activation_bits // 8,
            outlier_index=self._address(linear.outliers),
            part=(_Part * 3)(*parts),
        )

    def _parts(self, linear: Linear) -> list[_Part]:
        if isinstance(linear, FloatLinear):
            return [
                _Part(kind=0, out_features=len(weight), weight=self._address(weight), bias=self._address(bias))
                for weight, bias in zip(linear.weights, linear.biases, strict=True)
            ]
        assert isinstance(linear, Int8Linear)
        return [
            _Part(
                kind=1,
                out_features=len(linear.weight),
                weight=self._address(packed(linear.weight)),
                scale=self._address(linear.scale),
                bias=self._address(linear.bias),
                outlier_weight=self._address(_by_chunk(linear.outlier_weight)),
            )
        ]


def _by_chunk(outlier_weight: Tensor) -> Tensor:
    """`[outliers, out]` to `[chunks, outliers, 32]`: a chunk of rows finds its part in one piece of memory."""
    padded = F.pad(outlier_weight, (0, -outlier_weight.shape[1] % _CHUNK))
    return padded.unflatten(1, (-1, _CHUNK)).transpose(0, 1)


def supports(weights: DecoderWeights) -> bool:
    """Whether decoder.c computes these weights on this machine: CPU, float32 or int8, known sizes, a compiler."""
    linears = [weights.head]
    for layer in weights.layers:
        linears += [layer.qkv, layer.output, layer.gate_up, layer.down]
    return (
        weights.head_dim in HEAD_DIMS
        and len({layer.rope for layer in weights.layers}) <= 2
        and all(_plain(linear) for linear in linears)
        and library() is not None
    )


def _plain(linear: Linear) -> bool:
    if isinstance(linear, Int8Linear):
        return (
            linear.weight.device.type == "cpu"
            and linear.weight.shape[1] % _VECTOR == 0
            and len(linear.outliers) <= _MAX_OUTLIERS
        )
    return isinstance(linear, FloatLinear) and all(
        weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[1] % _VECTOR == 0
        for weight in linear.weights
    )
