"""Entropy-adaptive decoding (EAD) for `model.generate`.

Simonds 2025, arXiv 2502.06833: a small model writes while it is sure, a large one where the rolling entropy is high.
Each row of a batch switches by itself, and a step in which no row wants the large model does not run it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ...decoding.entropy_gate import EntropyGate, GateSettings, entropy_bits
from ...errors import InputError
from . import runner
from .custom_call import CustomMethod, ScoreRecord
from .entropy_adaptive_stats import SPEAKERS, EntropyAdaptiveStats, RowStats, Speaker
from .entropy_calibration import Calibration, FrontierPoint, Quality, find_threshold
from .generation import Generation
from .low_bit import LowBitModel
from .low_bit_cache import LowBitCache
from .padding import pad_left
from .runner import Runner, context_length, forward_of
from .seated_state import SeatedState
from .vocabulary import check_same_vocabulary
from .window_sampling import WindowSampler

VOCAB_PADDING = 512
"""Most ids that padding of the output head may set two models of one tokenizer apart (Qwen2.5: 128)."""


@dataclass
class EntropyAdaptiveOutput(GenerateDecoderOnlyOutput):
    """transformers' output of a decoder-only model, and what the method did."""

    stats: EntropyAdaptiveStats | None = None


class EntropyAdaptive(CustomMethod):
    """Pass it as `large.generate(**inputs, custom_generate=EntropyAdaptive(small, threshold=...), max_new_tokens=...)`.

    The object holds settings, the small model and a cache of low-bit weights, no state of a call: use it again, in
    other batches and other threads. Batches, sampling, logits processors, `stopping_criteria`, `streamer=`, seeds,
    `num_return_sequences` and `return_dict_in_generate` (the output then carries `stats`) work as in plain `generate`
    and act on the logits of whichever model writes. Entropy is measured before all of them.

    Args:
        small: a causal LM with the large model's tokenizer, on its device; or `"low-bit"`: an 8-bit copy of the large
            model's linears that shares its keys and values, so that a switch costs nothing.
        threshold: bits of entropy; the large model writes while the rolling mean exceeds it. `calibrate` finds it.
        window: tokens in the rolling mean.
        decay: 0 up to 1: an exponential average instead of the window, in which each token counts `decay` times as much
            as the next one; 0.8 looks back about as far as a window of 5.
        min_stay: tokens that a model writes before it may hand over; `window` by default.
        lower_threshold: the large model goes on until the mean is down to this; `threshold` by default.
        start: who writes the first tokens. The large model does not even read the prompt before it is wanted.
        streamer: receives tokens as they are released; `generate(streamer=...)` works as well.
        stop_strings: stop where one of these appears; needs `tokenizer`, since `generate(stop_strings=...)` refuses
            together with any custom method.
        tokenizer: for `stop_strings`; its largest id also bounds what entropy is measured over and what is written.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        small: PreTrainedModel | Literal["low-bit"],
        threshold: float,
        *,
        window: int = 5,
        decay: float | None = None,
        min_stay: int | None = None,
        lower_threshold: float | None = None,
        start: Speaker = "small",
        streamer: BaseStreamer | None = None,
        stop_strings: str | list[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if not isinstance(small, PreTrainedModel) and not (isinstance(small, str) and small == "low-bit"):
            raise InputError(f"small is {small!r:.60}: give a transformers model, or 'low-bit'")
        if start not in SPEAKERS:
            raise InputError(f"start is {start!r}: use one of 'small', 'large'")
        if stop_strings is not None and tokenizer is None:
            raise InputError("stop_strings is given without a tokenizer: pass tokenizer= as well")
        self.gate = GateSettings(
            threshold, window, min_stay, lower_threshold, start_large=start == "large", decay=decay
        )
        self.small = small
        self.streamer, self.stop_strings, self.tokenizer = streamer, stop_strings, tokenizer
        self.token_ids = None if tokenizer is None else max(tokenizer.get_vocab().values()) + 1
        self._low_bit = LowBitCache(LowBitModel.quantize)

    def prepare(self, model: PreTrainedModel) -> LowBitModel | None:
        """With `small="low-bit"`, quantise `model` now rather than in the first call; None otherwise."""
        return self._low_bit.of(model) if isinstance(self.small, str) else None

    @classmethod
    def calibrate(
        cls,
        large: PreTrainedModel,
        small: PreTrainedModel | Literal["low-bit"],
        prompts: Sequence[Sequence[int]],
        large_share: float = 0.25,
        *,
        max_new_tokens: int = 64,
        window: int = 5,
        decay: float | None = None,
        min_stay: int | None = None,
        start: Speaker = "small",
        tolerance: float = 0.02,
        max_runs: int = 10,
        batch_size: int = 8,
        quality: Quality | None = None,
        **generate_options: Any,
    ) -> Calibration:
        """Find the threshold at which the large model writes a wanted share of the tokens.

        Every probe generates from all prompts with a threshold and counts; the thresholds are bisected. Use the
        result as `EntropyAdaptive(small, calibration.threshold)` with the same window or decay, stay and start.

        Args:
            large: the large model.
            small: the small one, as for `EntropyAdaptive`.
            prompts: token ids without padding; some dozens of the kind that will be asked.
            large_share: wanted share of tokens by the large model, 0 to 1.
            max_new_tokens: tokens to write for each prompt and probe.
            window: as for `EntropyAdaptive`.
            decay: as for `EntropyAdaptive`.
            min_stay: as for `EntropyAdaptive`.
            start: as for `EntropyAdaptive`.
            tolerance: stop when the share is this near.
            max_runs: stop after this many probes, and take the nearest.
            batch_size: prompts generated together.
            quality: measures the texts of every probe beside those that the large model writes alone, which then writes
                them first; `agreement` of entropy_calibration.py is one. Probes that are left after the share is found
                go to other shares.
            generate_options: for `generate`: `do_sample`, `temperature` and so on; greedy by default.

        Raises:
            InputError: no prompt, an empty one, or a number out of range.
        """
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError("prompts is empty or has an empty prompt: give lists of token ids")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}: give a whole number of at least 1")
        method = cls(small, 0.0, window=window, decay=decay, min_stay=min_stay, start=start)
        options = {"do_sample": False, **generate_options}
        # of one length where possible: padding is read by nobody, but the longest row sets a pass's width
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
        large_texts: list[list[int]] = []

        def written(**method_option: Any) -> tuple[list[list[int]], list[Any]]:
            texts: list[list[int]] = [[] for _ in prompts]
            stats = []
            for batch in batches:
                rows = [prompts[index] for index in batch]
                output = large.generate(
                    pad_left(rows).to(large.device),
                    attention_mask=pad_left([[1] * len(row) for row in rows]).to(large.device),
                    max_new_tokens=max_new_tokens,
                    return_dict_in_generate=True,
                    **options,
                    **method_option,
                )
                stats.append(getattr(output, "stats", None))
                start, ends = max(map(len, rows)), _eos_ids(large)
                for index, new in zip(batch, output.sequences[:, start:].tolist(), strict=True):
                    end = next((place + 1 for place, token in enumerate(new) if token in ends), len(new))
                    texts[index] = new[:end]
            return texts, stats

        def probe(threshold: float) -> tuple[FrontierPoint, list[list[float]]]:
            # a copy shares the low-bit weights
            here = copy.copy(method)
            here.gate = replace(method.gate, threshold=threshold)
            texts, parts = written(custom_generate=here)
            stats = EntropyAdaptiveStats([row for part in parts for row in part.rows], parts[0].small_cost)
            point = FrontierPoint(
                threshold,
                stats.large_share,
                stats.cost,
                stats.switches,
                stats.new_tokens,
                sum(part.seconds["total"] for part in parts),
                None if quality is None else quality(texts, large_texts),
            )
            return point, [row.entropies for row in stats.rows]

        large_alone = None
        if quality is not None:
            begin = time.perf_counter()
            large_texts, _ = written()
            seconds = time.perf_counter() - begin
            tokens = sum(map(len, large_texts))
            large_alone = FrontierPoint(-math.inf, 1.0, 1.0, 0, tokens, seconds, quality(large_texts, large_texts))
        found = find_threshold(
            probe, large_share, gate=method.gate, tolerance=tolerance, max_runs=max_runs, fill=quality is not None
        )
        return replace(found, large_alone=large_alone)

    def _decode(
        self, model: PreTrainedModel, rows: Generation, processors: LogitsProcessorList, config: GenerationConfig
    ) -> Tensor | EntropyAdaptiveOutput:
        call = _Call(self, model, rows, processors, config)
        with torch.no_grad():
            call.run()
        if not config.return_dict_in_generate:
            return rows.sequences()
        return EntropyAdaptiveOutput(**call.record.fields(), stats=call.stats)


class _Call:
    """One call: a runner for each model, the gate, and the statistics."""

    def __init__(
        self,
        method: EntropyAdaptive,
        large: PreTrainedModel,
        rows: Generation,
        processors: LogitsProcessorList,
        config: GenerationConfig,
    ) -> None:
        self.rows = rows
        self.width = _width(large)
        # ids that both models and the tokenizer know
        self.vocab = self.width if method.token_ids is None else min(self.width, method.token_ids)
        if not isinstance(method.small, str):
            _check_pair(large, method.small, rows, method.token_ids)
            self.vocab = min(self.vocab, _width(method.small))
        self.sampler = WindowSampler(processors, do_sample=bool(config.do_sample), pad_token_id=rows.pad)
        self.record = ScoreRecord(rows, config)
        self.runners, self.states, small_cost = _runners(method, large, rows)
        self.gate = EntropyGate(len(rows.prompts), method.gate)
        self.stats = EntropyAdaptiveStats([RowStats() for _ in rows.prompts], small_cost)

    def run(self) -> None:
        with self.stats.timed("total"):
            while self.rows.active:
                self._write_one_token()

    def _write_one_token(self) -> None:
        """The model that the gate names for a row writes its next token; the gate hears how sure it was."""
        active = self.rows.active
        speakers = [SPEAKERS[large] for large in self.gate.large.tolist()]
        logits = self._next_logits({name: [row for row in active if speakers[row] == name] for name in SPEAKERS})
        with self.stats.timed("sample"):
            entropy = entropy_bits(logits, self.vocab)
            verified = self.sampler.verify(
                logits[:, None],
                [[] for _ in active],
                self.rows.shown,
                active,
                keep_scores=self.record.wanted,
            )
        self.gate.update(entropy, active)
        for row, bits in zip(active, entropy.tolist(), strict=True):
            self.stats.rows[row].speakers.append(speakers[row])
            self.stats.rows[row].entropies.append(bits)
        self.record.add(verified, active, self.rows.advance(verified.tokens))

    def _next_logits(self, wanted: dict[Speaker, list[int]]) -> Tensor:
        """`[active, width]` float32 logits of each row's own model, after one pass over what it has not seen."""
        found, order = [], []
        for speaker, rows in wanted.items():
            unseen = {row: self._unseen(speaker, row) for row in rows}
            # rows that catch up go by themselves: the others would be padded to their gap
            behind = [row for row in rows if len(unseen[row]) > 1]
            for group in ([row for row in rows if row not in behind], behind):
                if group:
                    found.append(self._fitted(self._pass(speaker, group, unseen)))
                    order += self.states[speaker].seated_rows
        slots = [order.index(row) for row in self.rows.active]
        return torch.cat(found)[slots]

    def _unseen(self, speaker: Speaker, row: int) -> list[int]:
        """What the text of a row has beyond the model's keys and values."""
        prompt, new = self.rows.prompts[row], self.rows.new[row]
        seen = self.states[speaker].length(row)
        return [*prompt[seen:], *new[max(seen - len(prompt), 0) :]]

    def _pass(self, speaker: Speaker, rows: list[int], unseen: dict[int, list[int]]) -> Tensor:
        for row in rows:
            stats, count = self.stats.rows[row], len(unseen[row])
            new = min(count, len(self.rows.new[row]))
            stats.forward_tokens[speaker] += count
            stats.catch_up_tokens[speaker] += max(new - 1, 0)
            stats.catch_up_passes[speaker] += new > 1
        self.stats.passes[speaker] += math.ceil(max(len(unseen[row]) for row in rows) / runner.PREFILL_CHUNK)
        with self.stats.timed(speaker):
            # models that share a state take an end of it each
            seats = self.states[speaker].seat(rows, back=speaker == "small")
            return self.runners[speaker].prefill([unseen[row] for row in seats])

    def _fitted(self, logits: Tensor) -> Tensor:
        """In float32 and over the large model's width, as the call's processors expect; no id but the common ones."""
        logits = logits.float()
        if logits.shape[1] == self.vocab == self.width:
            return logits
        fitted = logits.new_full((len(logits), self.width), -torch.inf)
        fitted[:, : self.vocab] = logits[:, : self.vocab]
        return fitted


def _runners(
    method: EntropyAdaptive, large: PreTrainedModel, rows: Generation
) -> tuple[dict[Speaker, Runner], dict[Speaker, SeatedState], float]:
    """Of both models, over one state if they are precisions of one model; what a token of the small one costs."""
    capacity = max(len(prompt) + max(rows.room(row), 0) for row, prompt in enumerate(rows.prompts)) + 1
    state = SeatedState(len(rows.prompts), capacity)
    runners: dict[Speaker, Runner] = {"large": Runner(forward_of(large), state, large.device, context_length(large))}
    low = method.prepare(large)
    if low is not None:
        runners["small"] = Runner(low.forward, state, large.device, context_length(large))
        return runners, {"small": state, "large": state}, _low_bit_cost(large, low)
    small = method.small
    assert isinstance(small, PreTrainedModel)
    own = SeatedState(len(rows.prompts), capacity)
    runners["small"] = Runner(forward_of(small), own, small.device, context_length(small))
    return runners, {"small": own, "large": state}, _parameters(small) / _parameters(large)


def _check_pair(large: PreTrainedModel, small: PreTrainedModel, rows: Generation, token_ids: int | None) -> None:
    widths = {"large": _width(large), "small": _width(small)}
    if abs(widths["large"] - widths["small"]) > VOCAB_PADDING:
        raise InputError(
            f"small has a vocabulary of {widths['small']} ids and the large model one of {widths['large']}: "
            "give two models of one tokenizer"
        )
    check_same_vocabulary("small", small, "the large model", large)
    if token_ids is not None and token_ids > min(widths.values()):
        raise InputError(
            f"tokenizer has {token_ids} ids, the small model {widths['small']} and the large one {widths['large']}: "
            "give two models of this tokenizer"
        )
    if small.device != large.device:
        raise InputError(f"small is on {small.device} and the large model on {large.device}: move it with small.to")
    limit = context_length(small)
    longest = max(len(prompt) + rows.room(row) for row, prompt in enumerate(rows.prompts))
    # the last token is never fed
    if limit is not None and longest - 1 > limit:
        raise InputError(
            f"small has a context of {limit} tokens and the text may grow to {longest}: "
            f"lower max_new_tokens by {longest - 1 - limit}"
        )


def _width(model: PreTrainedModel) -> int:
    return len(model.get_output_embeddings().weight)


def _eos_ids(model: PreTrainedModel) -> set[int]:
    found = model.generation_config.eos_token_id
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _low_bit_cost(model: PreTrainedModel, low: LowBitModel) -> float:
    """Bytes of the low-bit weights, and of what stays as it is, over those of the model."""
    whole = sum(map(_bytes, model.parameters()))
    names = [name for key in low.linears for name in key.split("+")]
    replaced = sum(_bytes(parameter) for name in names for parameter in model.get_submodule(name).parameters())
    packed = sum(_bytes(tensor) for linear in low.linears.values() for tensor in linear.state_dict().values())
    return (whole - replaced + packed) / whole


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
