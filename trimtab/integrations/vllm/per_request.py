"""How a request's strength reaches a composite model, on both of vLLM's model runners. Tested with vLLM 0.32.

Logits processors that change nothing: their `validate_params` runs in the server's process and makes a bad value HTTP
400. On V1 the processor also hears which request has which row; on V2 the model's state hears it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from .composed_directory import Method
from .composite_config import composition_of
from .strengths import default_strength, idle_strength, requested_strength

ROWS = "trimtab_row_strengths"
"""Attribute of vLLM's `ModelConfig` by which V1's processor and the model, built apart in one process, meet."""

# -- Model Runner V1 ---------------------------------------------------------------------------------------------------


class _V1(ProcessorV1):
    """Keeps the strength of each row of the batch."""

    method: ClassVar[Method]

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._default = default_strength(composition_of(vllm_config.model_config))
        self._rows: list[float] = [self._default] * vllm_config.scheduler_config.max_num_seqs
        setattr(vllm_config.model_config, ROWS, self._rows)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        requested_strength(cls.method, sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        rows = self._rows
        for row in batch_update.removed:
            rows[row] = self._default
        for row, params, _, _ in batch_update.added:
            wanted = requested_strength(self.method, params.extra_args)
            rows[row] = self._default if wanted is None else wanted
        for row, other, direction in batch_update.moved:
            if direction == MoveDirectionality.SWAP:
                rows[row], rows[other] = rows[other], rows[row]
            else:
                rows[other], rows[row] = rows[row], self._default


class AlphaV1(_V1):
    """Of fusion."""

    method = "fusion"


class GammaV1(_V1):
    """Of STEER."""

    method = "steer"


def token_strengths(vllm_config: VllmConfig, tokens: int, default: float, device: torch.device) -> Tensor:
    """`[tokens]` float32 of the step that V1 is running; `idle_strength` where no request is, as in a profiling run."""
    strengths = torch.full((tokens,), idle_strength(default), device=device)
    metadata = get_forward_context().attn_metadata
    rows: Sequence[float] | None = getattr(vllm_config.model_config, ROWS, None)
    if not metadata or rows is None:
        return strengths
    starts = next(iter(metadata.values())).query_start_loc
    counts = starts.diff()
    of_tokens = torch.tensor(rows[: len(counts)], device=device).repeat_interleave(counts)
    strengths[: len(of_tokens)] = of_tokens
    return strengths


# -- Model Runner V2 ---------------------------------------------------------------------------------------------------


class _V2(ProcessorV2):
    """Checks requests; `composite_state` has their strengths."""

    method: ClassVar[Method]

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        requested_strength(cls.method, sampling_params.extra_args)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        return False

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        return logits


class AlphaV2(_V2):
    """Of fusion."""

    method = "fusion"


class GammaV2(_V2):
    """Of STEER."""

    method = "steer"


def composite_state(vllm_config: VllmConfig, target: nn.Module, default: float) -> type:
    """The model state that V2 would give `target`, which also passes `strengths` to `forward`."""
    from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

    base = resolve_model_state_cls(vllm_config, target)
    method = composition_of(vllm_config.model_config).method

    class CompositeState(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._chosen = np.full(self.max_num_reqs, default, np.float32)
            self._slots = torch.full((self.max_num_reqs,), default, device=self.device)
            # CUDA graphs replay with the buffer that they were captured with
            self._tokens = torch.full((self.max_num_tokens,), idle_strength(default), device=self.device)
            self._places = torch.arange(self.max_num_tokens, dtype=torch.int32, device=self.device)
            self._changed = False

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            params = new_req_data.sampling_params
            wanted = None if params is None else requested_strength(method, params.extra_args)
            self._chosen[req_index] = default if wanted is None else wanted
            self._changed = True

        def apply_staged_writes(self) -> None:
            super().apply_staged_writes()
            if self._changed:
                self._slots.copy_(torch.from_numpy(self._chosen))
                self._changed = False

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
            tokens, requests = input_batch.num_tokens_after_padding, input_batch.num_reqs
            ends = input_batch.query_start_loc[1 : requests + 1]
            owner = torch.searchsorted(ends, self._places[:tokens].to(ends.dtype), right=True).clamp(max=requests - 1)
            self._tokens[:tokens] = self._slots[input_batch.idx_mapping[:requests].long()][owner]
            return {**super().prepare_inputs(input_batch, req_states), "strengths": self._tokens[:tokens]}

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
            return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "strengths": self._tokens[:num_tokens]}

    return CompositeState
