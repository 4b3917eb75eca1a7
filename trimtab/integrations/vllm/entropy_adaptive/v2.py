"""Entropy-adaptive decoding on vLLM's model runner V2. Tested with vLLM 0.31 and 0.32.

Touched: `GPUModelRunner.sampler`, `.rejection_sampler`, `.add_requests`, `.finish_requests`, `.req_states`; the
calls of both samplers with logits and `InputBatch`; `speculator.draft_logits`, the small model's logits before
temperature by request slot. The device is waited for where a request ends, not while tokens are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler, gather_draft_sampled

from ....decoding.entropy_gate import entropy_bits
from .options import most_tokens, request_threshold
from .slots import Counts, GateSlots, Saved


class RunnerV2:
    """Lets a runner's rejection sampling compare drafts with the distribution of whoever has the turn.

    Args:
        runner: with its models loaded.
        gates: of this engine, a slot for each of the runner's.
        ended: called with what a request that has ended wrote.
    """

    def __init__(self, runner: Any, gates: GateSlots, ended: Callable[[Counts], None]) -> None:
        self._runner, self._gates, self._ended = runner, gates, ended
        self._saved: dict[str, Saved] = {}
        self._add, self._finish = runner.add_requests, runner.finish_requests
        runner.add_requests, runner.finish_requests = self._adding, self._finishing
        sampler, verifier = runner.sampler, runner.rejection_sampler
        # the same objects with another call: their state is shared with the rest of the runner
        sampler.__class__ = _noting(type(sampler), gates)
        verifier.__class__ = _turn_taking(type(verifier), gates)

    def _finishing(self, scheduler_output: Any) -> None:
        slots = self._runner.req_states.req_id_to_index
        for name in scheduler_output.preempted_req_ids or ():
            if name in slots:
                self._saved[name] = self._gates.save(slots[name])
        for name in scheduler_output.finished_req_ids:
            self._saved.pop(name, None)
            if name in slots:
                self._ended(self._gates.counts(slots[name]))
        self._finish(scheduler_output)

    def _adding(self, scheduler_output: Any) -> None:
        self._add(scheduler_output)
        for new in scheduler_output.scheduled_new_reqs:
            slot = self._runner.req_states.req_id_to_index[new.req_id]
            params = new.sampling_params
            self._gates.begin(slot, request_threshold(params.extra_args), most_tokens(params.max_tokens))
            if (saved := self._saved.pop(new.req_id, None)) is not None:
                self._gates.restore(slot, saved)


def _noting(base: type, gates: GateSlots) -> type:
    """The sampler of steps without drafts: the large model writes, and its entropy counts."""

    class NotingSampler(base):
        def __call__(self, logits: Tensor, input_batch: Any) -> Any:
            slots = input_batch.idx_mapping.long()
            none = torch.zeros_like(slots)
            bits = entropy_bits(logits)
            window = gates.turns(slots, bits.new_zeros(len(slots), 0), bits[:, None], none)
            output = super().__call__(logits, input_batch)
            gates.end(slots, window, output.num_sampled.long())
            return output

    return NotingSampler


def _turn_taking(base: type[RejectionSampler], gates: GateSlots) -> type:
    """The rejection sampler, against the logits of whoever has the turn."""

    class TurnTakingSampler(base):
        def __call__(
            self,
            logits: Tensor,
            input_batch: Any,
            draft_logits: Tensor | None = None,
            *more: Any,  # since 0.32 the drafts that are invalid
        ) -> Any:
            assert draft_logits is not None  # of probabilistic drafts: checked at the start
            slots, length = input_batch.idx_mapping.long(), self.num_speculative_steps
            first = input_batch.cu_num_logits[:-1].long()
            rows = input_batch.cu_num_logits.diff().long()
            drafts = self._drafts(input_batch, first, rows, length)
            place = torch.arange(length + 1, device=logits.device)
            rows_at = first[:, None] + torch.minimum(place, rows[:, None] - 1)  # the last one repeated
            large_bits = entropy_bits(logits)[rows_at]
            owner = torch.arange(len(slots), device=logits.device).repeat_interleave(rows, output_size=len(logits))
            at = input_batch.expanded_local_pos[: len(logits)].long()
            # beside each row of the large model's; beside a request's last one any, which nobody reads
            small = draft_logits[slots[owner], at.clamp(max=length - 1), : logits.shape[-1]]
            small_bits = entropy_bits(small)[rows_at[:, :length]]
            window = gates.turns(slots, small_bits, large_bits, drafts)
            speaks = (~window.large[owner, at])[:, None] & (logits > -torch.inf)
            mixed = torch.where(speaks, small.to(logits.dtype), logits)
            output = super().__call__(mixed, input_batch, draft_logits, *more)

            reading = output.num_sampled == 0
            written = window.written(output.num_sampled, drafts).masked_fill(reading, 0)
            gates.end(slots, window, written)
            kept = written.to(output.num_sampled.dtype)
            return replace(output, num_sampled=kept, num_rejected=(rows.to(kept.dtype) - kept).masked_fill(reading, 0))

        def _drafts(self, input_batch: Any, first: Tensor, rows: Tensor, length: int) -> Tensor:
            """How many drafts each request has: those before the first that is only a place holder."""
            tokens, _ = gather_draft_sampled(
                input_batch.input_ids,
                input_batch.positions,
                input_batch.logits_indices,
                input_batch.expanded_idx_mapping,
                input_batch.expanded_local_pos,
                self.sampler.req_states.prefill_len.gpu,
            )
            place = torch.arange(1, length + 1, device=first.device)
            there = place < rows[:, None]
            found = tokens[torch.where(there, first[:, None] + place, 0)]
            return ((found >= 0) & there).long().cumprod(1).sum(1)

    return TurnTakingSampler
