"""Entropy-adaptive decoding on vLLM's model runner V1. Tested with vLLM 0.31 and 0.32.

Touched: `GPUModelRunner._sample`, `._update_states`, `.drafter._sample_draft_tokens`, `.drafter.propose`,
`.input_batch.req_ids`, `.requests`, `.discard_request_mask`; `SpecDecodeMetadata.num_draft_tokens`; the layout of
verification logits (a request's drafts and one more row, request after request).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID

from ....decoding.entropy_gate import entropy_bits
from .options import most_tokens, request_threshold
from .slots import Counts, GateSlots


class RunnerV1:
    """Lets a runner's rejection sampling compare drafts with the distribution of whoever has the turn.

    Args:
        runner: with its models loaded.
        gates: of this engine.
        ended: called with what a request that has ended wrote.
    """

    def __init__(self, runner: Any, gates: GateSlots, ended: Callable[[Counts], None]) -> None:
        self._runner, self._gates, self._ended = runner, gates, ended
        self._slots: dict[str, int] = {}
        self._free = list(range(len(gates)))
        self._logits: list[Tensor] = []  # of the window that is being drafted, `[rows, vocab]` a place
        self._bits: list[Tensor] = []
        self._row: dict[str, int] = {}
        self._drafted: tuple[Tensor, Tensor] | None = None  # `[rows, K, vocab]` and `[rows, K]`
        self._verify, self._update = runner._sample, runner._update_states
        self._propose = runner.drafter.propose
        runner._sample, runner._update_states = self._sample, self._updating
        runner.drafter.propose, runner.drafter._sample_draft_tokens = self._proposing, self._drafting

    # -- drafting ------------------------------------------------------------------------------------------------------

    def _drafting(self, hidden_states: Tensor, sampling_metadata: Any) -> tuple[Tensor, Tensor | None]:
        logits = self._runner.drafter.model.compute_logits(hidden_states)
        self._logits.append(logits.clone())  # sampling scales in place
        self._bits.append(entropy_bits(logits))
        return self._runner.drafter._sample_from_logits(logits, sampling_metadata)

    def _proposing(self, *args: Any, **keywords: Any) -> Tensor:
        self._logits, self._bits = [], []
        drafts = self._propose(*args, **keywords)
        self._drafted = (torch.stack(self._logits, 1), torch.stack(self._bits, 1)) if self._logits else None
        self._row = {name: row for row, name in enumerate(self._runner.input_batch.req_ids)}
        self._logits, self._bits = [], []
        return drafts

    # -- verification --------------------------------------------------------------------------------------------------

    def _sample(self, logits: Tensor | None, metadata: Any) -> Any:
        if logits is None:
            return self._verify(logits, metadata)
        names = list(self._runner.input_batch.req_ids)
        slots = self._slots_of(names)
        counts = [0] * len(names) if metadata is None else list(metadata.num_draft_tokens)
        longest = max(counts)
        drafts = torch.tensor(counts, device=logits.device)
        start = drafts.cumsum(0) - drafts + torch.arange(len(names), device=logits.device)
        place = torch.arange(longest + 1, device=logits.device)
        rows = start[:, None] + torch.minimum(place, drafts[:, None])  # `[requests, K + 1]`, the last one repeated
        large_bits = entropy_bits(logits)[rows]
        small, small_bits = self._drafts_of(names, longest, logits)
        window = self._gates.turns(slots, small_bits, large_bits, drafts)
        if longest:
            _let_speak(logits, small, window.large, counts)
        output = self._verify(logits, metadata)
        tokens = output.sampled_token_ids
        reading = torch.from_numpy(self._runner.discard_request_mask.np[: len(names)].copy()).to(logits.device)
        written = window.written((tokens != PLACEHOLDER_TOKEN_ID).sum(1), drafts)
        if longest:
            beyond = torch.arange(tokens.shape[1], device=tokens.device) >= written[:, None]
            output = replace(output, sampled_token_ids=tokens.masked_fill(beyond, PLACEHOLDER_TOKEN_ID))
        self._gates.end(slots, window, written.masked_fill(reading, 0))
        return output

    def _drafts_of(self, names: list[str], longest: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and entropies that drafts were drawn from, in the order of `names`; any where there are none."""
        if not longest:
            return logits[:0], logits.new_zeros(len(names), 0)
        assert self._drafted is not None
        index = torch.tensor([self._row.get(name, 0) for name in names], device=logits.device)
        small, bits = self._drafted
        return small[index, :longest], bits[index, :longest]

    # -- requests ------------------------------------------------------------------------------------------------------

    def _updating(self, scheduler_output: Any) -> Any:
        for name in scheduler_output.finished_req_ids:  # a preempted request is not among them, and keeps its slot
            if name in self._slots:
                slot = self._slots.pop(name)
                self._ended(self._gates.counts(slot))
                self._free.append(slot)
        return self._update(scheduler_output)

    def _slots_of(self, names: list[str]) -> Tensor:
        known = self._runner.requests
        for name in names:
            if name not in self._slots:
                if not self._free:
                    self._free = self._gates.grow()
                self._slots[name] = self._free.pop()
                params = known[name].sampling_params
                self._gates.begin(
                    self._slots[name], request_threshold(params.extra_args), most_tokens(params.max_tokens)
                )
        return torch.tensor([self._slots[name] for name in names], device=self._gates.device)


def _let_speak(logits: Tensor, small: Tensor, large: Tensor, counts: list[int]) -> None:
    """Put the small model's logits in the rows where it has the turn, but for tokens that a grammar forbade."""
    rows, owners, places, row = [], [], [], 0
    for owner, count in enumerate(counts):
        for place in range(count):
            rows.append(row + place)
            owners.append(owner)
            places.append(place)
        row += count + 1
    index, owner_of, place_of = (torch.tensor(part, device=logits.device) for part in (rows, owners, places))
    own = logits[index]
    speaks = (~large[owner_of, place_of])[:, None] & (own > -torch.inf)
    logits[index] = torch.where(speaks, small[owner_of, place_of].to(own.dtype), own)
