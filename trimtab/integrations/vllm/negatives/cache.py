"""Keys and values of negative prompts beside vLLM's own, and passes of the target that read them.

vLLM's scheduler knows nothing of them: they lie in memory of their own, in blocks of their own, laid out as the
target's attention back ends want. For a pass each attention layer is lent that memory, and the forward context the
metadata of the negative sequences. Tested with vLLM 0.31 and 0.32; the weights are the target's, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import AttentionGroup, allocate_kv_cache

from ....errors import InputError
from .releases import backend_spec, layer_caches, step_metadata
from .sequences import BLOCK, Feed


class NegativeCache:
    """Reads sequences with the target's weights.

    Args:
        vllm_config: of the engine.
        target: whose attention layers are all of the ordinary, causal kind.
        blocks: of `BLOCK` tokens.
        device: of the target.

    Attributes:
        size: bytes.
    """

    def __init__(self, vllm_config: VllmConfig, target: nn.Module, blocks: int, device: torch.device) -> None:
        self._vllm_config, self._target, self._blocks, self._device = vllm_config, target, blocks, device
        self._layers: dict[str, Any] = {
            layer.layer_name: layer for layer in target.modules() if isinstance(layer, Attention)
        }
        self._specs = {
            name: backend_spec(
                layer.get_attn_backend(),
                FullAttentionSpec(
                    block_size=BLOCK,
                    num_kv_heads=layer.num_kv_heads,
                    head_size=layer.head_size,
                    head_size_v=layer.head_size_v,
                    dtype=layer.kv_cache_torch_dtype,
                ),
            )
            for name, layer in self._layers.items()
            if layer.kv_sharing_target_layer_name is None
        }
        self.size = blocks * sum(spec.page_size_bytes for spec in self._specs.values())
        self._caches: dict[str, Tensor] = {}
        self._groups: list[AttentionGroup] = []

    def allocate(self) -> None:
        """Take the memory; once vLLM has settled how keys and values are laid out."""
        layout = _layer_by_layer(self._vllm_config.cache_config.get_resolved_kv_cache_layout())
        for layer in self._layers.values():
            backend = layer.get_attn_backend()
            if layout not in backend.supported_kv_cache_layouts():
                raise InputError(
                    f"{backend.get_name()} takes no {layout.name} keys and values, and negative prompts need them: set "
                    '{"trimtab": {"steer": {"negative_tokens": 0}}} in additional_config, or use another back end'
                )
        tensors, offset = [], 0
        for name, spec in self._specs.items():
            page = spec.page_size_bytes
            tensors.append(KVCacheTensor(self.size, [name], page * self._blocks, page, offset))
            offset += page * self._blocks
        specs = UniformTypeKVCacheSpecs(block_size=BLOCK, kv_cache_specs=self._specs)
        config = KVCacheConfig(self._blocks, tensors, [KVCacheGroupSpec(list(self._specs), specs)])
        caches = allocate_kv_cache(config, self._device, layout)
        for name, layer in self._layers.items():
            if layer.kv_sharing_target_layer_name is not None:
                caches[name] = caches[layer.kv_sharing_target_layer_name]
        self._groups = self._attention_groups()
        # back ends of smaller blocks see ours cut into theirs
        self._caches = layer_caches(caches, self._groups)

    def _attention_groups(self) -> list[AttentionGroup]:
        """Layers that share their metadata, each with a builder of its own: vLLM's keep state of their step."""
        groups: dict[tuple[Any, ...], AttentionGroup] = {}
        for name, layer in self._layers.items():
            backend = layer.get_attn_backend()
            spec = self._specs[layer.kv_sharing_target_layer_name or name]
            key = (backend.full_cls_name(), spec, layer.num_heads)
            if key in groups:
                groups[key].layer_names.append(name)
            else:
                groups[key] = AttentionGroup(backend, [name], spec, 0)
        with set_current_vllm_config(self._vllm_config):
            for group in groups.values():
                group.create_metadata_builders(self._vllm_config, self._device, kernel_block_size=BLOCK)
        return list(groups.values())

    def read(self, feeds: Sequence[Feed], ids: Tensor) -> Tensor:
        """`[tokens, hidden size]` hidden states; keys and values of the tokens are kept.

        Args:
            feeds: which tokens, those before them kept already.
            ids: `[tokens]` int32, side by side.
        """
        if not self._groups:
            self.allocate()
        positions = np.concatenate([np.arange(feed.start, feed.end) for feed in feeds])
        lengths = np.array([feed.end - feed.start for feed in feeds])
        ends = np.array([feed.end for feed in feeds], np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tables = np.zeros((len(feeds), max(len(feed.sequence.blocks) for feed in feeds)), np.int32)
        for row, feed in enumerate(feeds):
            tables[row, : len(feed.sequence.blocks)] = feed.sequence.blocks
        rows = np.repeat(np.arange(len(feeds)), lengths)
        slots = tables[rows, positions // BLOCK].astype(np.int64) * BLOCK + positions % BLOCK
        places, slot_mapping = self._sent(positions), self._sent(slots)
        common = CommonAttentionMetadata(
            query_start_loc=self._sent(starts),
            query_start_loc_cpu=torch.from_numpy(starts),
            seq_lens=self._sent(ends),
            seq_lens_cpu_upper_bound=torch.from_numpy(ends),
            num_reqs=len(feeds),
            num_actual_tokens=len(ids),
            max_query_len=int(lengths.max()),
            max_seq_len=int(ends.max()),
            block_table_tensor=self._sent(tables),
            slot_mapping=slot_mapping,
            positions=places,
            is_prefilling=torch.from_numpy(lengths > 1),
            req_idx=np.arange(len(feeds)),
        )
        metadata: dict[str, Any] = {}
        for group in self._groups:
            metadata |= dict.fromkeys(group.layer_names, step_metadata(group, common))
        mapping = dict.fromkeys(self._layers, slot_mapping)
        context = set_forward_context(metadata, self._vllm_config, num_tokens=len(ids), slot_mapping=mapping)
        with context, self._lent():
            hidden: Tensor = self._target(ids, places, None, None)
        return hidden

    def _sent(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """The layers have our keys and values in place of vLLM's."""
        own = {name: layer.kv_cache for name, layer in self._layers.items()}
        try:
            for name, layer in self._layers.items():
                layer.kv_cache = self._caches[name]
            yield
        finally:
            for name, layer in self._layers.items():
                layer.kv_cache = own[name]


def _layer_by_layer(layout: KVCacheLayout) -> KVCacheLayout:
    """With heads and tokens of a block in the same order, each layer's blocks side by side."""
    return KVCacheLayout.LBHNC if layout.value.index(2) < layout.value.index(3) else KVCacheLayout.LBNHC
