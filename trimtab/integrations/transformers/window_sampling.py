"""From the logits of a verification window to emitted tokens, with every logits processor of the call honoured.

A processor has to see each row as plain `generate` would show it: the caller's `input_ids` and the tokens of that row
so far. Rows of one batch are at different lengths here, so what a processor may be shown depends on what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as hf

from ...decoding.acceptance import NO_DRAFT, greedy_token, sampled_token
from ...errors import InputError
from .padding import pad_batch, pad_left

SCORES_ONLY = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TopHLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
    hf.SuppressTokensLogitsProcessor,
    hf.InfNanRemoveLogitsProcessor,
    hf.LogitNormalization,
)
"""Processors that never read `input_ids`: one call for all rows."""

ROW_BY_ROW = (
    hf.MinLengthLogitsProcessor,
    hf.MinNewTokensLengthLogitsProcessor,
    hf.RepetitionPenaltyLogitsProcessor,
    hf.NoRepeatNGramLogitsProcessor,
    hf.SequenceBiasLogitsProcessor,
    hf.ForcedBOSTokenLogitsProcessor,
    hf.ForcedEOSTokenLogitsProcessor,
    hf.ExponentialDecayLengthPenalty,
    hf.SuppressTokensAtBeginLogitsProcessor,
    hf.WatermarkLogitsProcessor,
)
"""Processors that treat each row by itself: uneven rows are shown one by one, without extra padding."""

STATEFUL = (hf.UnbatchedClassifierFreeGuidanceLogitsProcessor, hf.SynthIDTextWatermarkLogitsProcessor)
"""Processors whose own state advances by one token a call: wrong under any speculation."""


@dataclass(slots=True)
class Verified:
    """What one window gave, row by row.

    Attributes:
        tokens: emitted tokens, the accepted drafts and one more.
        accepted: number of drafts kept.
        probs: with `keep_probs` and sampling, what each emitted token was drawn from, `[vocab]` float32.
        scores: with `keep_scores`, the processed scores that each emitted token was chosen by, `[vocab]` float32.
        logits: with `keep_scores`, the logits before processing, `[vocab]` float32.
    """

    tokens: list[list[int]]
    accepted: list[int]
    probs: list[list[Tensor]] = field(default_factory=list)
    scores: list[list[Tensor]] = field(default_factory=list)
    logits: list[list[Tensor]] = field(default_factory=list)


class WindowSampler:
    """Chooses the tokens of a window, greedy or sampled.

    Args:
        processors: the list that `generate` prepared, warpers included.
        do_sample: sample, else take the argmax.
        pad_token_id: fills shorter rows on the left where a processor needs all rows at once.

    Raises:
        InputError: a processor keeps a state of its own that cannot follow a speculative decoder.
    """

    def __init__(self, processors: LogitsProcessorList, *, do_sample: bool, pad_token_id: int) -> None:
        for processor in processors:
            if isinstance(processor, STATEFUL):
                raise InputError(
                    f"logits processor {type(processor).__name__} advances its own state by one token a call, which "
                    "no speculative decoder can honour: leave out the option that adds it"
                )
        self._processors = processors
        self._do_sample = do_sample
        self._pad = pad_token_id

    def verify(
        self,
        logits: Tensor,
        drafts: Sequence[Sequence[int]],
        shown: Sequence[Sequence[int]],
        rows: Sequence[int],
        *,
        draft_probs: Sequence[Sequence[Tensor]] | None = None,
        keep_probs: bool = False,
        keep_scores: bool = False,
    ) -> Verified:
        """Emit at least one token for each of `rows`.

        Args:
            logits: `[len(rows), window, vocab]`; position w follows the first w drafts.
            drafts: drafts of each of `rows`, at most `window - 1`.
            shown: ids of every row of the batch as plain `generate` would show them, before this window.
            rows: which rows of the batch `logits` and `drafts` stand for.
            draft_probs: the distributions that the drafts were drawn from; None for a drafter without.
            keep_probs: return the distribution of every emitted token (sampling only).
            keep_scores: return scores and logits of every emitted token.
        """
        if not self._do_sample and not self._processors and not keep_scores:
            return self._verify_greedy(logits, drafts)
        device = logits.device
        result = Verified([[] for _ in rows], [0] * len(rows))
        result.probs, result.scores, result.logits = [[] for _ in rows], [[] for _ in rows], [[] for _ in rows]
        alive = list(range(len(rows)))
        for position in range(logits.shape[1]):
            raw = logits[:, position].float()
            prefixes = [[*shown[row], *drafts[i][:position]] for i, row in enumerate(rows)] if self._processors else []
            scores = self._process(raw, prefixes, shown, rows)
            here = [drafts[i][position] if position < len(drafts[i]) else NO_DRAFT for i in alive]
            draft = torch.tensor(here, device=device)
            if self._do_sample:
                probs = scores[alive].softmax(-1)
                proposal = None
                if draft_probs is not None:
                    proposal = torch.stack(
                        [
                            p if d == NO_DRAFT else draft_probs[i][position]
                            for i, d, p in zip(alive, here, probs, strict=True)
                        ]
                    )
                token, kept = sampled_token(probs, draft, proposal)
            else:
                token, kept = greedy_token(scores[alive], draft)
            still = []
            for slot, (i, t, k) in enumerate(zip(alive, token.tolist(), kept.tolist(), strict=True)):
                result.tokens[i].append(t)
                result.accepted[i] += k
                if keep_probs and self._do_sample:
                    result.probs[i].append(probs[slot])
                if keep_scores:
                    result.scores[i].append(scores[i])
                    result.logits[i].append(raw[i])
                if k:
                    still.append(i)
            alive = still
            if not alive:
                break
        return result

    def _verify_greedy(self, logits: Tensor, drafts: Sequence[Sequence[int]]) -> Verified:
        choices = logits.argmax(-1).tolist()
        result = Verified([], [], [[] for _ in choices])
        for row, draft in zip(choices, drafts, strict=True):
            kept = 0
            while kept < len(draft) and draft[kept] == row[kept]:
                kept += 1
            result.tokens.append(row[: kept + 1])
            result.accepted.append(kept)
        return result

    def _process(
        self, scores: Tensor, prefixes: list[list[int]], shown: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> Tensor:
        for processor in self._processors:
            if isinstance(processor, SCORES_ONLY):
                # These never read input_ids; an empty tensor would tell if one began to.
                scores = processor(scores.new_empty(len(scores), 0, dtype=torch.long), scores)
            elif isinstance(processor, ROW_BY_ROW):
                scores = _process_rows(processor, scores, prefixes)
            else:
                scores = self._process_batch(processor, scores, prefixes, shown, rows)
        return scores

    def _process_batch(
        self,
        processor: LogitsProcessor,
        scores: Tensor,
        prefixes: list[list[int]],
        shown: Sequence[Sequence[int]],
        rows: Sequence[int],
    ) -> Tensor:
        """Call a processor with the whole batch, finished rows too: it may tell rows apart by their index."""
        batch = [list(row) for row in shown]
        for row, prefix in zip(rows, prefixes, strict=True):
            batch[row] = prefix
        index = torch.tensor(list(rows), device=scores.device)
        everything = scores.new_zeros(len(batch), scores.shape[1])
        everything[index] = scores
        processed: Tensor = processor(pad_batch(batch, rows, self._pad).to(scores.device), everything)
        return processed[index]


def _process_rows(processor: LogitsProcessor, scores: Tensor, prefixes: list[list[int]]) -> Tensor:
    if len({len(prefix) for prefix in prefixes}) == 1:
        together: Tensor = processor(pad_left(prefixes).to(scores.device), scores)
        return together
    alone = [processor(pad_left([prefix]).to(scores.device), scores[i : i + 1]) for i, prefix in enumerate(prefixes)]
    return torch.cat(alone)
