"""Sides that run in transformers, in this process."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ...command_support import encode, encode_messages
from ...decoding.score_table import parameters
from ...errors import InputError
from ...generate_methods import Prepared
from ...generate_methods import prepare as prepare_method
from ...integrations.transformers.loading import load
from ...integrations.transformers.runner import context_length
from ...interrupts import Interrupts
from ..methods import PEERS
from ..prompts import Prompt
from ..records import TracedToken
from ..setups import Setup
from . import Generated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...integrations.transformers.loading import Loaded
    from ...integrations.transformers.temperature_selector import TemperatureSelector


class ModelPool:
    """Models by name and precision, each loaded once: two sides of one model compare methods, not memory.

    Args:
        device: where models go; None is "cuda" if there is one, else "cpu".
    """

    def __init__(self, device: str | None) -> None:
        self._device = device
        self._loaded: dict[tuple[str, str | None], Loaded] = {}

    def get(self, name: str, dtype: str | None) -> Loaded:
        """Load a model, or find it.

        Raises:
            InputError: as `load`.
        """
        if (name, dtype) not in self._loaded:
            self._loaded[name, dtype] = load(name, dtype=dtype, device=self._device)
        return self._loaded[name, dtype]


class FirstToken(BaseStreamer):
    """A streamer that notes when the first token came, and does nothing else."""

    def __init__(self) -> None:
        self._puts = 0
        self.time: float | None = None

    def put(self, value: Tensor) -> None:
        """The prompt comes first, then tokens."""
        self._puts += 1
        if self._puts == 2:
            self.time = time.perf_counter()

    def end(self) -> None:
        """Nothing is left to be written."""


class TransformersDecoder:
    """A set-up over loaded models.

    Args:
        setup: of the engine `transformers`.
        pool: where its models come from.
        chat: whether to use the chat template; None if the tokenizer has one.

    Raises:
        InputError: a model cannot be loaded, or models do not go together.
    """

    def __init__(self, setup: Setup, pool: ModelPool, chat: bool | None) -> None:
        self._setup, self._chat = setup, chat
        self._model, self._tokenizer = pool.get(setup.model, setup.dtype)
        self._selector: TemperatureSelector | None = None
        self._prepared = self._peer(pool) if setup.method in PEERS else self._method(pool)
        self._sampling = _sampling(setup)

    def _method(self, pool: ModelPool) -> Prepared:
        setup = self._setup
        return prepare_method(
            setup.method,
            setup.options,
            self._model,
            lambda name: pool.get(name, setup.dtype).model,
            lambda text: self._encoded(Prompt("", "", text))["input_ids"][0].tolist(),
        )

    def _peer(self, pool: ModelPool) -> Prepared:
        options = self._setup.options
        if self._setup.method == "prompt_lookup":
            return Prepared({"prompt_lookup_num_tokens": options.get("prompt_lookup_num_tokens", 10)})
        if self._setup.method == "assisted":
            assistant = pool.get(options["assistant_model"], self._setup.dtype)
            if assistant.tokenizer.get_vocab() != self._tokenizer.get_vocab():
                raise InputError(
                    f"assistant_model {options['assistant_model']} has another vocabulary than {self._setup.model}: "
                    "give models of one tokenizer"
                )
            return Prepared({"assistant_model": assistant.model})
        from ...integrations.transformers.temperature_selector import TemperatureSelector

        size = parameters(options["size"]) if "size" in options else float(self._model.num_parameters())
        self._selector = TemperatureSelector(size, table=options.get("table"), rule=options.get("rule", "expected"))
        return Prepared({})

    def _encoded(self, prompt: Prompt) -> dict[str, Any]:
        if prompt.messages is not None:
            found = encode_messages(self._tokenizer, list(prompt.messages), model_name=self._setup.model)
        else:
            found = encode(self._tokenizer, prompt.text, chat=self._chat, system=None, model_name=self._setup.model)
        return {name: tensor.to(self._model.device) for name, tensor in found.items()}

    def decode(self, prompt: Prompt, seed: int, max_new_tokens: int) -> Generated:
        """As `Decoder.decode`; the clock runs from the token ids to the last token."""
        inputs = self._encoded(prompt)
        length = inputs["input_ids"].shape[1]
        room = (context_length(self._model) or sys.maxsize) - length
        if room < 1:
            raise InputError(f"the prompt has {length} tokens and the model's context is {length + room}")
        options = {**self._prepared.options, **self._sampling, "max_new_tokens": min(max_new_tokens, room)}
        if count := self._setup.options.get("num_assistant_tokens"):  # read from the assistant, which sides may share
            assistant = options["assistant_model"].generation_config
            assistant.num_assistant_tokens, assistant.num_assistant_tokens_schedule = count, "constant"
        streamer = FirstToken()
        torch.manual_seed(seed)
        self._wait()
        start = time.perf_counter()
        if self._selector is not None:  # reading the prompt is a part of the method
            options["logits_processor"] = [self._selector.processor([prompt.text])]
        with Interrupts() as interrupts:
            output = self._model.generate(
                **inputs, **options, streamer=streamer, stopping_criteria=[interrupts], return_dict_in_generate=True
            )
        self._wait()
        seconds = time.perf_counter() - start
        tokens = output.sequences[0, length:].tolist()
        stats = self._prepared.stats(output) or {}
        if self._selector is not None:
            stats["temperature"] = float(options["logits_processor"][0].temperatures[0])
        return Generated(
            text=self._tokenizer.decode(tokens, skip_special_tokens=True),
            tokens=len(tokens),
            prompt_tokens=length,
            seconds=seconds,
            first_token_seconds=None if streamer.time is None else streamer.time - start,
            stats=stats,
            trace=_trace(self._tokenizer, tokens, self._prepared.trace(output)),
        )

    def _wait(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    def close(self) -> None:
        """The pool keeps the models."""


def _sampling(setup: Setup) -> dict[str, Any]:
    given = {name: value for name, value in setup.sampling.items() if name != "seed"}
    penalty = {"repetition_penalty": given.pop("repetition_penalty")} if "repetition_penalty" in given else {}
    if setup.method == "temperature":
        # its processor divides; another temperature here would divide once more
        return {**penalty, **given, "do_sample": True, "temperature": 1.0}
    if not given.get("temperature"):
        return {**penalty, "do_sample": False}
    return {**penalty, **given, "do_sample": True}


def _trace(tokenizer: PreTrainedTokenizerBase, tokens: list[int], known: list[dict[str, Any]]) -> list[TracedToken]:
    """Every token's text and what the method did there; a token that only begins a letter adds no text."""
    if len(known) != len(tokens):
        return []
    found, before = [], ""
    for place, facts in enumerate(known, 1):
        text = tokenizer.decode(tokens[:place])
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}") if place < len(tokens) else text
        found.append(TracedToken(whole[len(before) :], **facts))
        before = whole if len(whole) > len(before) else before
    return found
