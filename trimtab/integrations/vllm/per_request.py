"""How a composite model is pushed for each request, and on which rows: on both of vLLM's model runners.

Logits processors that change nothing: their `validate_params` runs in the server's process and makes a bad value HTTP
400. On V1 the processor also hears which request has which row; on V2 the model's state hears it. STEER's negatives are
read on there too (negatives/), before the step's logits are asked for. Tested with vLLM 0.31 and 0.32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from .composed_directory import Method
from .composite_config import composition_of
from .negatives.branch import NegativeBranch, NegativePool
from .negatives.sequences import NegativeGroup
from .processors import ProcessorV1, ProcessorV2
from .strengths import Push, default_push, idle_push, requested_push

ROWS = "trimtab_rows"
"""Attribute of vLLM's `ModelConfig` by which V1's processor and the model, built apart in one process, meet."""

NewBranch = Callable[[NegativePool], NegativeBranch]

# -- Model Runner V1 ---------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """A request in the batch; `new` are the generated tokens that it has been fed."""

    push: Push
    group: NegativeGroup | None = None
    prompt: int = 0
    new: list[int] = field(default_factory=list)

    def feed(self, first: int, ids: list[int]) -> None:
        """Tokens from the generated one `first` on; below 0 they are of the prompt."""
        start, ids = max(0, first), ids[max(0, -first) :]
        if ids and (start > len(self.new) or min(self.new[:start], default=0) < 0):
            raise RuntimeError(f"generated tokens before {start} are not known: negatives cannot follow them")
        self.new[start : start + len(ids)] = ids


class Rows:
    """The requests of V1's batch by row.

    Args:
        vllm_config: of the engine.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        composition = composition_of(vllm_config.model_config)
        self._method, self._default = composition.method, default_push(composition)
        self._rows = [_Row(self._default) for _ in range(vllm_config.scheduler_config.max_num_seqs)]
        self.pool = NegativePool(vllm_config)
        self._branch: NegativeBranch | None = None

    def update(self, update: BatchUpdate) -> None:
        """Requests come, go and move."""
        rows = self._rows
        for row in update.removed:
            self._replace(row, _Row(self._default))
        for row, params, prompt, output in update.added:
            push = requested_push(self._method, params.extra_args, self._default)
            group = self.pool.open(params.extra_args) if self._method == "steer" else None
            self._replace(row, _Row(push, group, len(prompt or ()), list(output)))
        for row, other, direction in update.moved:
            if direction == MoveDirectionality.SWAP:
                rows[row], rows[other] = rows[other], rows[row]
            else:
                self._replace(other, rows[row])
                rows[row] = _Row(self._default)

    def _replace(self, row: int, new: _Row) -> None:
        self.pool.close(self._rows[row].group)
        self._rows[row] = new

    def pushes(self, input_ids: Tensor, positions: Tensor, new_branch: NewBranch) -> Tensor:
        """`[tokens, numbers]` float32 of the step that is running; its negatives have been read on.

        Args:
            input_ids: `[tokens]`.
            positions: `[tokens]`.
            new_branch: called for the first negatives.
        """
        device = input_ids.device
        pushes = torch.tensor(idle_push(self._default), device=device).repeat(len(input_ids), 1)
        metadata = get_forward_context().attn_metadata
        if not metadata:  # a profiling run
            return pushes
        starts = next(iter(metadata.values())).query_start_loc.tolist()
        wanted: list[tuple[NegativeGroup, int]] = []
        new_tokens: list[list[int]] = []
        for row, begin, end in zip(self._rows, starts, starts[1:], strict=False):
            pushes[begin:end] = torch.tensor(row.push, device=device)
            if row.group is None or begin == end:
                continue
            first = int(positions[begin]) - row.prompt  # of the generated tokens; below 0 in the prompt
            row.feed(first, input_ids[begin:end].tolist())
            after = first + end - begin
            if after >= 0:  # the end of the prompt is read: a token is sampled
                pushes[end - 1, 2] = len(wanted)
                wanted.append((row.group, after))
                new_tokens.append(row.new)
        if wanted:
            if self._branch is None:
                self._branch = new_branch(self.pool)
            self._branch.read(
                wanted,
                lambda owners, places: torch.tensor(
                    [new_tokens[owner][place] for owner, place in zip(owners, places, strict=True)]
                ),
            )
        return pushes


class _V1(ProcessorV1):
    """Keeps what each row of the batch asks for."""

    method: ClassVar[Method]

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows = Rows(vllm_config)
        setattr(vllm_config.model_config, ROWS, self._rows)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _check(cls.method, sampling_params)

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is not None:
            self._rows.update(batch_update)


class AlphaV1(_V1):
    """Of fusion."""

    method = "fusion"


class GammaV1(_V1):
    """Of STEER."""

    method = "steer"


def _check(method: Method, params: SamplingParams) -> None:
    requested_push(method, params.extra_args, default=(0.0,))


# -- Model Runner V2 ---------------------------------------------------------------------------------------------------


class _V2(ProcessorV2):
    """Checks requests; `composite_state` has what they ask for."""

    method: ClassVar[Method]

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        _check(cls.method, sampling_params)

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


def composite_state(vllm_config: VllmConfig, target: nn.Module, default: Push, new_branch: NewBranch) -> type:
    """The model state that V2 would give `target`, which also passes `pushes` to `forward`.

    Args:
        vllm_config: of the engine.
        target: of the composite model.
        default: of requests that ask for nothing.
        new_branch: called once if the engine takes negatives.
    """
    from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

    base = resolve_model_state_cls(vllm_config, target)
    method = composition_of(vllm_config.model_config).method

    class CompositeState(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._chosen = np.tile(np.array(default, np.float32), (self.max_num_reqs, 1))
            self._slots = torch.tensor(self._chosen, device=self.device)
            # CUDA graphs replay with the buffer that they were captured with
            self._tokens = torch.tensor(idle_push(default), device=self.device).repeat(self.max_num_tokens, 1)
            self._places = torch.arange(self.max_num_tokens, dtype=torch.int32, device=self.device)
            self._changed = False
            self._groups: dict[str, NegativeGroup] = {}
            self._pool = NegativePool(vllm_config)
            self._branch: NegativeBranch | None = None
            if method == "steer" and self._pool.blocks is not None:
                self._branch = new_branch(self._pool)
                # counted by vLLM's profiling run, which comes before the layout is known
                size = self._branch.cache.size
                self._reserved: Tensor | None = torch.empty(size, dtype=torch.int8, device=self.device)

        def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
            super().initialize_kv_cache(*args, **kwargs)
            if self._branch is not None:
                self._reserved = None
                self._branch.cache.allocate()

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            params = new_req_data.sampling_params
            extra_args = None if params is None else params.extra_args
            self._chosen[req_index] = requested_push(method, extra_args, default)
            self._changed = True
            group = self._pool.open(extra_args) if method == "steer" else None
            if group is not None:
                self._groups[new_req_data.req_id] = group

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            self._pool.close(self._groups.pop(req_id, None))

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
            if self._groups:
                self._read_negatives(input_batch, req_states)
            return {**super().prepare_inputs(input_batch, req_states), "pushes": self._tokens[:tokens]}

        def _read_negatives(self, input_batch: Any, req_states: Any) -> None:
            wanted: list[tuple[NegativeGroup, int]] = []
            rows, slots, prompts = [], [], []
            for row, name in enumerate(input_batch.req_ids):
                slot = int(input_batch.idx_mapping_np[row])
                prompt = int(req_states.prompt_len.np[slot])
                after = int(input_batch.num_computed_tokens_np[row] + input_batch.num_scheduled_tokens[row]) - prompt
                if name in self._groups and after >= 0:  # the end of the prompt is read: a token is sampled
                    wanted.append((self._groups[name], after))
                    rows.append(int(input_batch.query_start_loc_np[row + 1]) - 1)
                    slots.append(slot)
                    prompts.append(prompt)
            if not wanted:
                return

            def new_tokens(owners: list[int], places: list[int]) -> Tensor:
                where = [prompts[owner] + place for owner, place in zip(owners, places, strict=True)]
                of_slot = torch.tensor([slots[owner] for owner in owners], device=self.device)
                found: Tensor = req_states.all_token_ids.gpu[of_slot, torch.tensor(where, device=self.device)]
                return found

            assert self._branch is not None
            self._reserved = None  # before 0.32 no hook tells when the layout is known: the first pass allocates
            self._branch.read(wanted, new_tokens)
            places = torch.arange(len(rows), dtype=torch.float32, device=self.device)
            self._tokens[torch.tensor(rows, device=self.device), 2] = places

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
            return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "pushes": self._tokens[:num_tokens]}

    return CompositeState
