"""A temperature for each request of a vLLM engine, by what its prompt asks for.

    vllm serve MODEL --logits-processors trimtab.integrations.vllm.temperature:TemperatureProcessor

A request asks with `vllm_xargs`: {"trimtab_temperature": "auto"}, or an ability in the place of auto. Its own
temperature stays an upper bound.

The engine divides by the request's own temperature T0, before the processor on one runner, after it on the other. The
processor divides by T / T0, which leaves softmax(z / T) on both. Tested with vLLM 0.31 and 0.32.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from ...decoding.score_table import ScoreTable
from ...decoding.temperature import ABILITIES, scale_logits
from ...errors import InputError
from ...kernels.entropy import entropy_bits
from . import versions
from .metrics import Counter, Histogram
from .processors import ProcessorV1, ProcessorV2
from .settings import settings
from .temperature_choice import AUTO, Choice, TemperatureChoice
from .trace import Stay, Trace

FIELD = "trimtab_temperature"
TRACE_ID = "trimtab_trace_id"

TEMPERATURES = Histogram(
    "trimtab:temperature",
    "Temperatures that requests with trimtab_temperature were sampled at.",
    ScoreTable.read().grid.tolist(),
    ("model_name", "ability"),
)
BOUNDED = Counter(
    "trimtab:temperature_bounded",
    "Requests whose own temperature was lower than the chosen one.",
    ("model_name",),
)


@dataclass(eq=False, slots=True)
class _Seat:
    """A request in the batch."""

    asked: str
    own: float
    min_p: float
    trace_id: str | None
    resumed: bool
    output: list[int] = field(default_factory=list)
    pending: Future[Choice] | None = None
    choice: Choice | None = None
    stay: Stay | None = None


class TemperatureProcessor(ProcessorV1, ProcessorV2):
    """Both of vLLM's interfaces; which one an engine uses shows in the constructor's arguments.

    The classifier runs in a thread from the moment a request enters the batch, beside the forward pass over its
    prompt, and is waited for when the first token is sampled.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what cannot be done, which the server answers with HTTP 400.

        Raises:
            InputError: `trimtab_temperature` is neither auto nor an ability, or `trimtab_trace_id` is no text.
        """
        extra = sampling_params.extra_args or {}
        if FIELD in extra and extra[FIELD] not in (AUTO, *ABILITIES):
            raise InputError(f"{FIELD} is {extra[FIELD]!r}: give {AUTO} or one of {', '.join(ABILITIES)}")
        if TRACE_ID in extra and not isinstance(extra[TRACE_ID], str):
            raise InputError(f"{TRACE_ID} is {extra[TRACE_ID]!r}: give a text")

    def __init__(self, vllm_config: VllmConfig, *runner: Any) -> None:
        versions.require("temperature selection", "temperature", "V2" if len(runner) == 1 else "V1")
        self._choices = TemperatureChoice(vllm_config)
        self._seats: dict[int, _Seat] = {}
        self._stale = False
        self._model = str(vllm_config.model_config.served_model_name)
        path = settings(vllm_config, "trace", ("path",)).get("path")
        # every tensor-parallel rank samples alike: one of them speaks
        self._speaks = vllm_config.parallel_config.rank == 0
        self._trace = Trace(path) if path is not None and self._speaks else None
        self._requests: Any = None
        if len(runner) == 1:
            self._requests = requests = runner[0]
            self._device: torch.device = requests.device
            self._new: list[int] = []
            # of every slot; exactly 1 leaves a row as it is
            self._host = torch.ones(requests.max_num_reqs)
            self._ratios = self._host.to(self._device)
        else:
            self._device = runner[0]

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """`[rows, vocab]` float32 logits, changed in place."""
        if not self._seats:
            return logits
        return self._apply_v1(logits) if ctx is None else self._apply_v2(logits, ctx)

    # -- V1: a row is a request, logits come divided by T0, top-k and top-p follow -----------------------------------

    def is_argmax_invariant(self) -> bool:
        """True, which is what puts the processor behind penalties and temperature."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch."""
        if batch_update is None:
            return
        before = set(self._seats.values())
        if process_dict_updates(self._seats, batch_update, self._seat_v1):
            self._stale = True
            self._leave(before - set(self._seats.values()))

    def _seat_v1(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Seat | None:
        seat = _seat(params, resumed=bool(output))
        if seat is not None:
            seat.output = output
            seat.pending = self._choices.submit(seat.asked, prompt, seat.own)
        return seat

    def _apply_v1(self, logits: Tensor) -> Tensor:
        seats = list(self._seats.values())
        if self._stale:
            choices = [self._settled(seat) for seat in seats]
            self._index = torch.tensor(list(self._seats), device=self._device)
            self._own = torch.tensor([seat.own for seat in seats], device=self._device)
            ratios = [choice.temperature / seat.own for seat, choice in zip(seats, choices, strict=True)]
            self._ratios = torch.tensor(ratios, dtype=torch.float64, device=self._device)
            floors = [math.log(seat.min_p) if seat.min_p > 0 else -math.inf for seat in seats]
            # min-p came before: what it kept at T0 is more than it keeps at T, never less, since T <= T0
            self._floors = torch.tensor(floors, device=self._device) if any(map(math.isfinite, floors)) else None
            self._stale = False
        rows = logits[self._index]
        if self._trace is not None:
            positions = torch.tensor([len(seat.output) for seat in seats])
            self._measure(torch.tensor(list(self._seats)), positions, entropy_bits(rows * self._own[:, None]))
        scale_logits(rows, self._ratios, out=rows)
        if self._floors is not None:
            rows.masked_fill_(rows < rows.amax(-1, keepdim=True) + self._floors[:, None], -math.inf)
        logits[self._index] = rows
        return logits

    # -- V2: rows carry a slot's number, T0, min-p, top-k and top-p follow -------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take a slot."""
        if (gone := self._seats.pop(req_idx, None)) is not None:
            self._leave({gone})
            self._set_ratio(req_idx, 1.0)
        lengths = self._requests.prefill_len.np[req_idx], self._requests.prompt_len.np[req_idx]
        seat = _seat(sampling_params, resumed=bool(lengths[0] > lengths[1]))
        if seat is None:
            return False
        self._seats[req_idx] = seat
        self._new.append(req_idx)
        return True

    def apply_staged_writes(self) -> None:
        """Read the prompts of new requests, which now lie on the device."""
        for slot in self._new:
            seat = self._seats.get(slot)
            if seat is not None and seat.pending is None:
                length = int(self._requests.prompt_len.np[slot])
                prompt = self._requests.all_token_ids.gpu[slot, :length] if seat.asked == AUTO else None
                seat.pending = self._choices.submit(seat.asked, None if prompt is None else prompt.cpu(), seat.own)
        self._new.clear()

    def _apply_v2(self, logits: Tensor, ctx: Any) -> Tensor:
        here = {int(slot): seat for slot in ctx.idx_mapping_np if (seat := self._seats.get(int(slot))) is not None}
        self._leave({seat for seat in self._seats.values() if seat.stay is not None} - set(here.values()))
        if not here:
            return logits
        for slot, seat in here.items():
            if seat.choice is None:
                self._set_ratio(slot, self._settled(seat).temperature / seat.own)
        if self._stale:
            self._ratios = self._host.to(self._device)
            self._stale = False
        slots = ctx.expanded_idx_mapping.long()
        if self._trace is not None:
            prompts = torch.as_tensor(self._requests.prompt_len.np).to(self._device)
            self._measure(slots, ctx.pos + 1 - prompts[slots], entropy_bits(logits))
        return scale_logits(logits, self._ratios[slots], out=logits)

    def _set_ratio(self, slot: int, ratio: float) -> None:
        self._host[slot] = ratio
        self._stale = True

    # -- both --------------------------------------------------------------------------------------------------------

    def _settled(self, seat: _Seat) -> Choice:
        """A request's choice, once it is made; waits for it."""
        if seat.choice is None:
            assert seat.pending is not None
            seat.choice = choice = seat.pending.result()
            seat.pending = None
            if self._speaks and not seat.resumed:
                TEMPERATURES.observe(choice.temperature, model_name=self._model, ability=choice.ability or "")
                if choice.chosen is not None and choice.chosen > choice.temperature:
                    BOUNDED.inc(model_name=self._model)
        return seat.choice

    def _measure(self, keys: Tensor, positions: Tensor, bits: Tensor) -> None:
        assert self._trace is not None
        for seat in self._seats.values():
            if seat.stay is None and seat.choice is not None:
                seat.stay = Stay(_head(seat, seat.choice), "entropy_bits")
        stays = {key: seat.stay for key, seat in self._seats.items() if seat.stay is not None}
        self._trace.add(stays, keys, positions, bits)

    def _leave(self, seats: set[_Seat]) -> None:
        if self._trace is not None:
            self._trace.end([seat.stay for seat in seats if seat.stay is not None])


def _seat(params: SamplingParams, *, resumed: bool) -> _Seat | None:
    """A request that asks for a temperature; greedy ones have none to choose."""
    extra = params.extra_args or {}
    if FIELD not in extra or params.temperature < 1e-5:
        return None
    return _Seat(extra[FIELD], params.temperature, params.min_p, extra.get(TRACE_ID), resumed)


def _head(seat: _Seat, choice: Choice) -> dict[str, Any]:
    shares = choice.probabilities
    return {
        "id": seat.trace_id,
        "asked": seat.asked,
        "ability": choice.ability,
        "abilities": None if shares is None else {name: round(share, 4) for name, share in shares.items()},
        "chosen": choice.chosen,
        "own_temperature": seat.own,
        "temperature": choice.temperature,
    }
