"""The forward pass of any transformers causal LM over a ragged state, through the model's own modules."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ...errors import InputError
from .state import Window

KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention"}


class ModuleForward:
    """Calls `model.forward` with explicit positions, explicit masks and a cache that writes into the window's state.

    Args:
        model: a causal LM that `check_supported` accepts.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        config = model.config.get_text_config()
        self._layer_types = sorted(set(getattr(config, "layer_types", None) or []))
        self._sliding_window: int | None = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            self._sliding_window = None
        self._additive = config._attn_implementation == "eager"
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(self, tokens: Tensor, window: Window, select: Tensor | None = None) -> Tensor:
        """Logits `[batch, window, vocab]`, or with `select` (`[batch]` window indices) `[batch, vocab]`."""
        extra: dict[str, Any] = {}
        if select is not None and self._keeps_logits:
            # The head of a whole prompt would be the largest tensor of all: keep only from the first wanted row on.
            first = int(select.min())
            extra["logits_to_keep"] = tokens.shape[1] - first
            select = select - first
        logits: Tensor = self.model(
            input_ids=tokens,
            attention_mask=self._masks(window),
            position_ids=window.positions,
            past_key_values=_WindowCache(window),
            use_cache=True,
            **extra,
        ).logits
        return logits if select is None else logits[torch.arange(len(select), device=logits.device), select]

    def _masks(self, window: Window) -> Tensor | dict[str, Tensor]:
        if len(self._layer_types) > 1:
            return {kind: self._mask(window, kind == "sliding_attention") for kind in self._layer_types}
        only = self._layer_types[0] if self._layer_types else None
        return self._mask(window, only == "sliding_attention" or (only is None and self._sliding_window is not None))

    def _mask(self, window: Window, sliding: bool) -> Tensor:
        reach = self._sliding_window if sliding else None
        mask = window.additive_mask(reach, self.model.dtype) if self._additive else window.visible(reach)
        if mask is None:  # everything is visible; models would read None as "causal", which here is not the same
            shape = (len(window.positions), 1, window.width, window.kv_length)
            fill: Any = 0.0 if self._additive else True
            dtype = self.model.dtype if self._additive else torch.bool
            mask = torch.full(shape, fill, dtype=dtype, device=window.positions.device)
        return mask


def check_supported(model: PreTrainedModel) -> None:
    """Refuse, by name, a model whose state cannot be ragged and rolled back.

    Raises:
        InputError: encoder-decoder, recurrent or unknown layer types, no explicit positions, a device map over more
            than one device, or an attention implementation that takes no explicit mask.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise InputError(f"model {name} is an encoder-decoder: trimtab decodes causal language models only")
    unknown = sorted(set(getattr(config, "layer_types", None) or []) - KNOWN_LAYER_TYPES)
    if unknown or getattr(model, "_is_stateful", False):
        what = ", ".join(unknown) or "recurrent state"
        raise InputError(
            f"model {name} has {what}, which cannot be rolled back: use a model with full or sliding-window attention"
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise InputError(f"model {name} takes no position_ids, so rows of different length cannot share a batch")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) != 1:
        raise InputError(f"model {name} lies on {len(devices)} devices ({', '.join(devices)}): move it to one")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise InputError(
            f"model {name} uses attn_implementation={config._attn_implementation!r}, which takes no explicit mask: "
            "load it with attn_implementation='sdpa'"
        )


class _WindowCache(Cache):
    """The window's state in the shape of a transformers cache."""

    def __init__(self, window: Window) -> None:
        super().__init__(layers=[])
        self._window = window

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._window.write(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._window.kv_length - self._window.width

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._window.kv_length, 0
