"""Negative prompts of the requests in a step: read on to where the requests are, and turned into log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from ..composed_scores import Negative
from .cache import NegativeCache
from .engine import limits_of, negative_ids, tokenizer_source
from .requests import requested_negatives
from .sequences import BlockPool, Feed, NegativeGroup, NegativeSequence, passes, rounds

NewTokens = Callable[[list[int], list[int]], Tensor]
"""`[tokens]` ids of generated tokens: whose, as places in the step's groups, and which of each from 0."""
ROWS = 64
"""Sequences whose logits are computed at a time."""


class _Step(NamedTuple):
    """Hidden states after each sequence `[sequences, hidden size]`, and by group what was asked for."""

    hidden: Tensor
    owners: Tensor
    shares: Tensor
    eta: Tensor
    balanced: Tensor


class NegativePool:
    """The negative prompts of an engine's requests; needs no model.

    Args:
        vllm_config: of the engine.

    Attributes:
        blocks: that hold keys and values; None where the engine takes no negatives.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        limits = limits_of(vllm_config)
        self.blocks = None if limits.refusal else BlockPool(limits.tokens, limits.negatives)
        self._source = tokenizer_source(vllm_config)

    def open(self, extra_args: dict[str, Any] | None) -> NegativeGroup | None:
        """The group of a request, None if it names no negatives."""
        wanted = requested_negatives(extra_args)
        if wanted is None:
            return None
        sequences = [NegativeSequence(ids) for ids in negative_ids(self._source, wanted.texts)]
        return NegativeGroup(wanted.eta, wanted.balanced, sequences)

    def close(self, group: NegativeGroup | None) -> None:
        """Its request has left."""
        if group is not None and self.blocks is not None:
            self.blocks.drop(group)


class NegativeBranch:
    """Reads the negatives of an engine.

    Args:
        vllm_config: of the engine.
        target: the model that reads them.
        blocks: of the engine's pool.
        device: of the target.

    Attributes:
        forwarded: tokens read so far.
    """

    def __init__(self, vllm_config: VllmConfig, target: nn.Module, blocks: BlockPool, device: torch.device) -> None:
        self.cache = NegativeCache(vllm_config, target, blocks.size, device)
        self.forwarded = 0
        self._target: Any = target
        self._pool, self._device = blocks, device
        self._tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self._sequences = vllm_config.scheduler_config.max_num_seqs
        self._step: _Step | None = None

    def read(self, wanted: Sequence[tuple[NegativeGroup, int]], new_tokens: NewTokens) -> None:
        """Read on; `negative` speaks of these groups until the next call.

        Args:
            wanted: groups, and how many generated tokens follow each of their prompts.
            new_tokens: their ids.
        """
        self._step = None  # its memory is for the passes
        places = [0]
        for group, _ in wanted:
            places.append(places[-1] + len(group.sequences))
        hidden: list[Tensor] = []
        order: list[int] = []
        for batch in rounds(wanted, self._pool.size):
            here = [wanted[owner] for owner in batch]
            self._pool.hold(here, later=[group for group, _ in wanted])
            feeds = [feed for owner in batch for feed in _feeds(*wanted[owner], owner, places[owner])]
            # attention back ends of GPUs want steps of one token before longer ones
            feeds.sort(key=lambda feed: feed.end - feed.start)
            for part in passes(feeds, self._tokens, self._sequences):
                states = self.cache.read(part, self._ids(part, new_tokens))
                ends, finished = -1, []
                for feed in part:
                    ends += feed.end - feed.start
                    feed.sequence.kept = feed.end
                    if feed.last:
                        finished.append(ends)
                        order.append(feed.place)
                self.forwarded += ends + 1
                hidden.append(states[torch.tensor(finished, dtype=torch.long, device=self._device)])
        groups = [group for group, _ in wanted]
        of_place = torch.empty(len(order), dtype=torch.long)
        of_place[torch.tensor(order)] = torch.arange(len(order))
        counts = torch.tensor([len(group.sequences) for group in groups])
        self._step = _Step(
            torch.cat(hidden)[of_place.to(self._device)],
            torch.arange(len(groups)).repeat_interleave(counts).to(self._device),
            (1 / counts).repeat_interleave(counts).to(self._device),
            torch.tensor([group.eta for group in groups], device=self._device),
            torch.tensor([group.balanced for group in groups], device=self._device),
        )

    def _ids(self, part: Sequence[Feed], new_tokens: NewTokens) -> Tensor:
        ids: list[int] = []
        places, owners, indices = [], [], []
        for feed in part:
            length = len(feed.sequence.prompt)
            ids += feed.sequence.prompt[feed.start : feed.end]
            for position in range(max(feed.start, length), feed.end):
                places.append(len(ids))
                owners.append(feed.owner)
                indices.append(position - length)
                ids.append(0)
        # the type of vLLM's own: compiled models do not look
        found = torch.tensor(ids, dtype=torch.int32, device=self._device)
        if places:
            found[torch.tensor(places, device=self._device)] = new_tokens(owners, indices).to(found)
        return found

    def negative(self, rows: Tensor, width: int) -> Negative:
        """For groups of the last `read`; every tensor-parallel rank has to ask.

        Args:
            rows: `[rows]` long, places in its `wanted`.
            width: of the vocabulary that all models have.
        """
        step = self._step
        assert step is not None
        mean = torch.zeros(len(step.eta), width, device=self._device)
        for start in range(0, len(step.hidden), ROWS):
            part = slice(start, start + ROWS)
            logits = self._target.compute_logits(step.hidden[part].contiguous())
            if logits is not None:
                log_probs = logits[:, :width].float().log_softmax(-1)
                mean.index_add_(0, step.owners[part], step.shares[part, None] * log_probs)
        return Negative(mean[rows], step.eta[rows], step.balanced[rows])


def _feeds(group: NegativeGroup, new: int, owner: int, place: int) -> list[Feed]:
    feeds = []
    for offset, sequence in enumerate(group.sequences):
        end = len(sequence.prompt) + new
        # at least the last token, whose hidden state is wanted
        start = min(sequence.kept, end - 1)
        feeds.append(Feed(sequence, place + offset, owner, start, end, True))
    return feeds
