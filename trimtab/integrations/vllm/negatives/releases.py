"""Where releases of vLLM differ in what keys and values beside its own need. Tested with vLLM 0.31 and 0.32.

Since 0.32 each group of attention layers knows the blocks that its back end computes with, which may be parts of ours.
Before, it has to take ours whole.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.worker import utils
from vllm.v1.worker.utils import AttentionGroup

from ....errors import InputError
from .sequences import BLOCK


def backend_spec(backend: Any, spec: Any) -> Any:
    """The `AttentionSpec` of a layer as its back end wants it."""
    if hasattr(utils, "customize_attention_spec"):
        return utils.customize_attention_spec(backend, spec)
    return backend.customize_spec(spec)


def layer_caches(caches: dict[str, Tensor], groups: list[AttentionGroup]) -> dict[str, Tensor]:
    """What the layers are given of keys and values in blocks of `BLOCK` tokens.

    Raises:
        InputError: before 0.32, for a back end of smaller blocks.
    """
    if hasattr(utils, "map_kv_caches_to_kernel_blocks"):
        found: dict[str, Tensor] = utils.map_kv_caches_to_kernel_blocks(caches, groups)
        return found
    for group in groups:
        if utils.select_common_block_size(BLOCK, [group.backend]) != BLOCK:
            raise InputError(
                f"{group.backend.get_name()} takes no blocks of {BLOCK} tokens, and negative prompts need them with "
                'this release of vLLM: set {"trimtab": {"steer": {"negative_tokens": 0}}} in additional_config, or use '
                "another back end"
            )
    return caches


def step_metadata(group: AttentionGroup, common: Any) -> Any:
    """The attention metadata of a group's layers, from `CommonAttentionMetadata`."""
    if hasattr(group, "build_metadata"):
        return group.build_metadata(common)
    return group.get_metadata_builder().build(0, common)
