"""Quantised self-speculative verification (Quasar) for `model.generate`.

Huang & Wen 2026, arXiv 2603.01399: drafts come from prompt lookup, and the model verifies them with low-bit weights of
its own. `mode="quantized"` is the paper: the whole call runs in low bits. `mode="lossless"` verifies every token once
more, a window at a time, at full precision, so that the text is the full-precision model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ...decoding.prompt_lookup import PromptLookup
from ...errors import InputError
from .custom_call import CustomMethod, ScoreRecord
from .generation import Generation
from .low_bit import LowBitConfig, LowBitModel
from .low_bit_cache import LowBitCache
from .padding import pad_right
from .runner import Runner, context_length, forward_of
from .state import SequenceState
from .timed import Timed
from .window_sampling import Verified, WindowSampler

Mode = Literal["quantized", "lossless"]
Drafter = Literal["prompt_lookup", "none"]
BITS = (16, 8, 4)


@dataclass
class VerificationStats(Timed):
    """What one call did.

    Attributes:
        new_tokens: tokens released, all rows.
        passes: forward passes by precision: `prefill`, `low_bit`, `full`.
        drafted: tokens drafted by prompt lookup.
        accepted: of these, tokens that the verifying pass kept.
        reverified: tokens that low-bit passes wrote and a full-precision pass checked (`lossless`).
        confirmed: of these, tokens that the check kept.
        row_passes: verifying passes, counted once for each row that took part.
        row_tokens: tokens that these passes emitted.
        from_draft: `[row][token]`, whether a released token had been written ahead and was only verified: drafted by
            prompt lookup, or by low-bit passes in `lossless`.
        seconds: by phase: `prefill`, `draft`, `low_bit`, `full`, `sample` (processors and acceptance), `total`.
    """

    new_tokens: int = 0
    passes: dict[str, int] = field(default_factory=lambda: {"prefill": 0, "low_bit": 0, "full": 0})
    drafted: int = 0
    accepted: int = 0
    reverified: int = 0
    confirmed: int = 0
    row_passes: int = 0
    row_tokens: int = 0
    from_draft: list[list[bool]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens of a row per pass that verifies drafts of prompt lookup: accepted drafts and one more."""
        return self.row_tokens / self.row_passes if self.row_passes else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "new_tokens": self.new_tokens,
            "acceptance_length": round(self.acceptance_length, 4),
            "passes": dict(self.passes),
            "drafted": self.drafted,
            "accepted": self.accepted,
            "reverified": self.reverified,
            "confirmed": self.confirmed,
            "seconds": {phase: round(seconds, 6) for phase, seconds in self.seconds.items()},
        }


@dataclass
class VerificationOutput(GenerateDecoderOnlyOutput):
    """transformers' output of a decoder-only model, and what the method did."""

    stats: VerificationStats | None = None


class QuantizedVerification(CustomMethod):
    """Pass it as `model.generate(**inputs, custom_generate=QuantizedVerification(bits=8), max_new_tokens=...)`.

    The object holds settings and a cache of low-bit weights, no state of a call: use it again, in other batches and
    other threads. Batches, sampling, `stopping_criteria`, `streamer=`, seeds, `num_return_sequences` and
    `return_dict_in_generate` (the output then carries `stats`) work as in plain `generate`. A row ends, at the
    latest, where the model's context does.

    Args:
        bits: weights of the verifying passes: 8, 4, or 16 for the model's own precision (plain prompt lookup).
        mode: `quantized`: the paper, lossy; `lossless`: greedy and sampled results of the full-precision model.
        draft_length: tokens to draft for a window, at least 1.
        max_ngram: longest n-gram that prompt lookup matches; it falls back to shorter ones down to 1.
        drafter: `prompt_lookup`, or `none` for plain low-bit decoding.
        window: `lossless`: tokens that low-bit passes may write before a full-precision pass checks them.
        activation_bits: with 8-bit weights: 16 (two int8 planes), or 8 for the paper's W8A8.
        outliers: input channels of each linear kept in full precision.
        quantize_head: also quantise the output head.
        weights: file of low-bit weights saved by `LowBitModel.save`; quantised on first use by default.
        streamer: receives tokens as they are released; `generate(streamer=...)` works as well.
        stop_strings: stop where one of these appears; needs `tokenizer`, since `generate(stop_strings=...)` refuses
            together with any custom method.
        tokenizer: for `stop_strings`.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        bits: int = 8,
        mode: Mode = "quantized",
        *,
        draft_length: int = 5,
        max_ngram: int = 3,
        drafter: Drafter = "prompt_lookup",
        window: int = 8,
        activation_bits: int = 16,
        outliers: int = 32,
        quantize_head: bool = False,
        weights: str | Path | None = None,
        streamer: BaseStreamer | None = None,
        stop_strings: str | list[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        _choice("bits", bits, BITS)
        _choice("mode", mode, get_args(Mode))
        _choice("drafter", drafter, get_args(Drafter))
        _choice("activation_bits", activation_bits, (8, 16))
        for name, value, least in (
            ("draft_length", draft_length, 1),
            ("max_ngram", max_ngram, 1),
            ("window", window, 1),
            ("outliers", outliers, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}: give a whole number of at least {least}")
        if stop_strings is not None and tokenizer is None:
            raise InputError("stop_strings is given without a tokenizer: pass tokenizer= as well")
        self.bits, self.mode, self.draft_length, self.max_ngram = bits, mode, draft_length, max_ngram
        self.drafter, self.window, self.weights = drafter, window, weights
        self.streamer, self.stop_strings, self.tokenizer = streamer, stop_strings, tokenizer
        self.config = (
            None
            if bits == 16
            else LowBitConfig(bits=bits, activation_bits=activation_bits, outliers=outliers, head=quantize_head)  # type: ignore[arg-type]
        )
        self._low_bit = LowBitCache(self._make)

    def prepare(self, model: PreTrainedModel) -> LowBitModel | None:
        """Quantise (or load) the low-bit weights of `model` now rather than in the first call; None with 16 bits.

        They are kept for later calls, and made again when the model's weights have changed.
        """
        if self.config is None:
            return None
        return self._low_bit.of(model)

    def _make(self, model: PreTrainedModel) -> LowBitModel:
        return LowBitModel.load(model, self.weights) if self.weights else LowBitModel.quantize(model, self.config)

    def _decode(
        self, model: PreTrainedModel, rows: Generation, processors: LogitsProcessorList, config: GenerationConfig
    ) -> Tensor | VerificationOutput:
        call = _Call(self, model, rows, processors, config)
        with torch.no_grad():
            call.run()
        return call.output()


class _Call:
    """One call: runners over a shared state, an n-gram index a row, and the statistics."""

    def __init__(
        self,
        method: QuantizedVerification,
        model: PreTrainedModel,
        rows: Generation,
        processors: LogitsProcessorList,
        config: GenerationConfig,
    ) -> None:
        self.method, self.rows, self.config = method, rows, config
        self.stats = VerificationStats(from_draft=[[] for _ in rows.prompts])
        self.record = ScoreRecord(rows, config)
        self.sampler = WindowSampler(processors, do_sample=bool(config.do_sample), pad_token_id=rows.pad)
        low = method.prepare(model)
        longest = max(map(len, rows.prompts)) + max(max(map(rows.room, rows.active)), 0)
        state = SequenceState(len(rows.prompts), longest + method.window + 1)
        # without linears of its own the low-bit model is the model itself: nothing to check against
        self.lossless = method.mode == "lossless" and low is not None and bool(low.linears)
        limit = context_length(model)
        full = forward_of(model) if low is None or self.lossless else None
        self.full = None if full is None else Runner(full, state, model.device, limit)
        self.low = None if low is None else Runner(low.forward, state, model.device, limit)
        self.state = state
        self.lookups = []
        for prompt in rows.prompts:
            lookup = PromptLookup(method.max_ngram)
            if method.drafter == "prompt_lookup":
                lookup.extend(prompt)
            self.lookups.append(lookup)

    # -- the two modes -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        with self.stats.timed("total"):
            self._prefill()
            while self.rows.active:
                if self.lossless:
                    self._release(*self._write_in_low_bits())
                else:
                    self._verify_drafts()
        self.stats.new_tokens = sum(map(len, self.rows.new))

    def _prefill(self) -> None:
        """Feed the prompts; their last logits give each row its first token."""
        runner = self.full or self.low
        assert runner is not None
        with self.stats.timed("prefill"):
            logits = runner.prefill(self.rows.prompts)
            self.stats.passes["prefill"] += 1
        none: list[list[int]] = [[] for _ in self.rows.active]
        self._emit(self._choose(logits[:, None], none, self.rows.shown))

    def _verify_drafts(self) -> None:
        """One window, drafted by prompt lookup, verified at the mode's one precision."""
        rows = self.rows
        drafts = self._draft([min(self.method.draft_length, rows.room(row) - 1) for row in rows.active])
        runner, phase = (self.full, "full") if self.full is not None else (self.low, "low_bit")
        assert runner is not None
        last = [rows.new[row][-1] for row in rows.active]
        logits = self._extend(runner, phase, last, drafts)
        verified = self._choose(logits, drafts, rows.shown)
        self._count(drafts, verified)
        self._emit(verified)

    def _write_in_low_bits(self) -> tuple[list[list[int]], list[list[Tensor]]]:
        """Low-bit passes write up to `window` tokens a row ahead of what is released; their distributions with them."""
        assert self.low is not None
        rows, base = self.rows, self.state.lengths
        # one token comes from the check itself, so the last token of a row needs no window at all
        room = [min(self.method.window, rows.room(row) - 1) for row in rows.active]
        ahead: list[list[int]] = [[] for _ in rows.active]
        probs: list[list[Tensor]] = [[] for _ in rows.active]
        going = [slot for slot, space in enumerate(room) if space > 0]
        while going:
            drafts: list[list[int]] = [[] for _ in rows.active]
            wanted = [min(self.method.draft_length, room[slot] - len(ahead[slot]) - 1) for slot in going]
            for slot, draft in zip(going, self._draft(wanted, going), strict=True):
                drafts[slot] = draft
            last = [(ahead[slot] or rows.new[row])[-1] for slot, row in enumerate(rows.active)]
            logits = self._extend(self.low, "low_bit", last, drafts, going)
            shown = list(rows.shown)
            for slot, row in enumerate(rows.active):
                shown[row] = rows.shown[row] + ahead[slot]
            verified = self._choose(logits, drafts, shown, going, ahead=True)
            self._count(drafts, verified)
            ended = set()
            for slot, tokens, kept in zip(going, verified.tokens, verified.probs, strict=True):
                ahead[slot] += tokens
                probs[slot] += kept
                self._index(rows.active[slot], tokens)
                if rows.eos.intersection(tokens):
                    ended.add(slot)
            self.state.rollback([length + len(tokens) for length, tokens in zip(base, ahead, strict=True)])
            going = [slot for slot in going if slot not in ended and len(ahead[slot]) < room[slot]]
        self.state.rollback(base)
        return ahead, probs

    def _release(self, ahead: list[list[int]], probs: list[list[Tensor]]) -> None:
        """One full-precision pass checks what the low-bit passes wrote and overwrites their keys and values."""
        assert self.full is not None
        rows = self.rows
        for row, tokens in zip(rows.active, ahead, strict=True):
            self.lookups[row].truncate(len(self.lookups[row].tokens) - len(tokens))
        logits = self._extend(self.full, "full", [rows.new[row][-1] for row in rows.active], ahead)
        verified = self._choose(logits, ahead, rows.shown, draft_probs=probs if any(probs) else None)
        self.stats.reverified += sum(map(len, ahead))
        self.stats.confirmed += sum(verified.accepted)
        self._emit(verified)

    # -- what both are made of ---------------------------------------------------------------------------------------

    def _draft(self, counts: Sequence[int], slots: Sequence[int] | None = None) -> list[list[int]]:
        active = self.rows.active if slots is None else [self.rows.active[slot] for slot in slots]
        with self.stats.timed("draft"):
            return [
                self.lookups[row].draft(count) if count > 0 else [] for row, count in zip(active, counts, strict=True)
            ]

    def _extend(
        self,
        runner: Runner,
        phase: str,
        last: list[int],
        drafts: list[list[int]],
        slots: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of the windows `[last, drafts]`; rows not in `slots` take part with no token."""
        taking = range(len(last)) if slots is None else slots
        windows = [[token, *draft] for token, draft in zip(last, drafts, strict=True)]
        counts = [len(windows[slot]) if slot in taking else 0 for slot in range(len(last))]
        with self.stats.timed(phase):
            self.stats.passes[phase] += 1
            return runner.extend(pad_right(windows), counts)

    def _choose(
        self,
        logits: Tensor,
        drafts: list[list[int]],
        shown: list[list[int]],
        slots: Sequence[int] | None = None,
        *,
        draft_probs: list[list[Tensor]] | None = None,
        ahead: bool = False,
    ) -> Verified:
        """Tokens of the rows in `slots` (all active ones by default); `ahead` of what a full pass will check."""
        active = self.rows.active
        if slots is not None and len(slots) < len(active):
            logits, drafts, active = logits[slots], [drafts[slot] for slot in slots], [active[slot] for slot in slots]
        with self.stats.timed("sample"):
            return self.sampler.verify(
                logits,
                drafts,
                shown,
                active,
                draft_probs=draft_probs,
                keep_probs=ahead,
                keep_scores=self.record.wanted and not ahead,
            )

    def _count(self, drafts: list[list[int]], verified: Verified) -> None:
        self.stats.drafted += sum(map(len, drafts))
        self.stats.accepted += sum(verified.accepted)
        self.stats.row_passes += len(verified.tokens)
        self.stats.row_tokens += sum(map(len, verified.tokens))

    def _index(self, row: int, tokens: Sequence[int]) -> None:
        if self.method.drafter == "prompt_lookup":
            with self.stats.timed("draft"):
                self.lookups[row].extend(tokens)

    def _emit(self, verified: Verified) -> None:
        """Release tokens; rows that end leave the batch, the others keep what they have seen of their own tokens."""
        before = self.rows.active
        taken = self.rows.advance(verified.tokens)
        self.record.add(verified, before, taken)
        for slot, (row, count) in enumerate(zip(before, taken, strict=True)):
            self._index(row, verified.tokens[slot][:count])
            self.stats.from_draft[row] += [place < verified.accepted[slot] for place in range(count)]
        staying = [slot for slot, row in enumerate(before) if row in set(self.rows.active)]
        if len(staying) < len(before) and staying:
            self.state.select(staying)
        # the token released last has not been fed yet
        if staying:
            self.state.rollback([len(self.rows.prompts[row]) + len(self.rows.new[row]) - 1 for row in self.rows.active])

    def output(self) -> Tensor | VerificationOutput:
        if not self.config.return_dict_in_generate:
            return self.rows.sequences()
        return VerificationOutput(**self.record.fields(), stats=self.stats)


def _choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}: use one of {', '.join(map(repr, allowed))}")
