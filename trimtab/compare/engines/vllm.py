"""Sides that run in vLLM, in this process: each method as docs/vllm.md starts it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...errors import InputError
from ...generate_methods import DYNAMIC, LOW_BIT
from ...integrations.transformers.loading import resolve
from ...integrations.vllm import versions
from ...integrations.vllm.composed_directory import compose_fusion, compose_steer
from ..prompts import Prompt
from ..setups import SAMPLING, Setup
from . import Decoder, Generated

_WORKER = "trimtab.integrations.vllm.entropy_adaptive.worker.Worker"
_EAD_REQUESTS = "trimtab.integrations.vllm.entropy_adaptive.requests:EntropyAdaptiveRequests"
_TEMPERATURE = "trimtab.integrations.vllm.temperature:TemperatureProcessor"
_FREE = 2.0
"""Temperature that leaves trimtab's choice free: a request's own is its upper bound."""
_SHARE = 0.9
"""Of a GPU's memory, for all engines of a run together."""


def open_decoders(setups: Mapping[str, Setup], chat: bool | None) -> dict[str, Decoder]:
    """Engines for all sides; sides that differ in what a request says alone share one.

    Raises:
        InputError: the installed vLLM was not tested with a method, or models do not go together.
    """
    folder = tempfile.TemporaryDirectory(prefix="trimtab-ab-")
    wanted = {
        side: engine_options(setup, Path(folder.name, f"side{place}"))
        for place, (side, setup) in enumerate(setups.items())
    }
    different = {json.dumps(options, sort_keys=True) for options in wanted.values()}
    engines: dict[str, _Engine] = {}
    decoders: dict[str, Decoder] = {}
    for side, options in wanted.items():
        key = json.dumps(options, sort_keys=True)
        if key not in engines:
            engines[key] = _Engine({**options, "gpu_memory_utilization": _SHARE / len(different)}, folder)
        decoders[side] = VllmDecoder(setups[side], engines[key], chat)
    return decoders


def engine_options(setup: Setup, composed: Path) -> dict[str, Any]:
    """What `vllm.LLM` is given for a set-up.

    Args:
        setup: of the engine `vllm`.
        composed: where a directory of several models may be written.

    Raises:
        InputError: the installed vLLM was not tested with the method, or models do not go together.
    """
    options = setup.options
    model = resolve(setup.model)
    # a prompt that another side or round left in the prefix cache would not be read again
    found: dict[str, Any] = {"model": model, "enable_prefix_caching": False}
    if setup.dtype is not None:
        found["dtype"] = setup.dtype
    if setup.method != "none":
        versions.require(setup.method, cast(versions.Part, setup.method))
    if setup.method == "quantized":
        found |= _quantized(options)
    elif setup.method == "ead":
        if options["small"] == LOW_BIT:
            raise InputError(f"small is {LOW_BIT!r}: in vLLM give a small model")
        gate = {name: options[name] for name in ("threshold", "window", "decay") if name in options}
        found |= {
            "speculative_config": {
                "method": "draft_model",
                "model": resolve(options["small"]),
                "num_speculative_tokens": 8,
                "draft_sample_method": "probabilistic",
            },
            "worker_cls": _WORKER,
            "logits_processors": [_EAD_REQUESTS],
            "additional_config": {"trimtab": {"entropy_adaptive": gate}},
        }
    elif setup.method == "fusion":
        alpha = options.get("alpha", DYNAMIC)
        experts = [Path(resolve(name)) for name in options["expert"]]
        base = Path(resolve(options["small_base"]))
        compose_fusion(composed, Path(model), base, experts, alpha=None if alpha == DYNAMIC else alpha)
        found["model"] = str(composed)
    elif setup.method == "steer":
        compose_steer(composed, Path(model), Path(resolve(options["base"])), gamma=options.get("gamma", 0.2))
        found["model"] = str(composed)
    elif setup.method == "temperature":
        choice = {name: options[key] for name, key in _CHOICE if key in options}
        found["logits_processors"] = [_TEMPERATURE]
        if choice:
            found["additional_config"] = {"trimtab": {"temperature": choice}}
    return found


_CHOICE = (("model", "size"), ("table", "table"), ("rule", "rule"))


def _quantized(options: Mapping[str, Any]) -> dict[str, Any]:
    bits = options.get("bits", 8)
    found: dict[str, Any] = {}
    if bits != 16:
        activations = 16 if bits == 4 else options.get("activation_bits", 16)
        found["quantization"] = f"trimtab-w{bits}a{activations}"
    if options.get("drafter", "prompt_lookup") == "prompt_lookup":
        found["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": options.get("draft_length", 5),
            "prompt_lookup_max": options.get("max_ngram", 3),
            "prompt_lookup_min": 1,
        }
    return found


class _Engine:
    """One `vllm.LLM`; `folder` lives as long as it does."""

    def __init__(self, options: dict[str, Any], folder: Any) -> None:
        # its log of dozens of lines is about what was asked for; errors still come
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        self.folder = folder
        self.llm = LLM(**options, disable_log_stats=False, seed=0)
        self.tokenizer = self.llm.get_tokenizer()


class VllmDecoder:
    """A set-up over an engine.

    Args:
        setup: of the engine `vllm`.
        engine: that `engine_options` describes.
        chat: whether to use the chat template; None if the tokenizer has one.
    """

    def __init__(self, setup: Setup, engine: _Engine, chat: bool | None) -> None:
        self._setup, self._engine, self._chat = setup, engine, chat

    def decode(self, prompt: Prompt, seed: int, max_new_tokens: int) -> Generated:
        """As `Decoder.decode`; the clock runs from the token ids to the last token."""
        from vllm import SamplingParams

        sampling = {name: value for name, value in self._setup.sampling.items() if name in SAMPLING and name != "seed"}
        extra: dict[str, Any] = {}
        if self._setup.method == "temperature":
            sampling["temperature"] = _FREE
            extra["trimtab_temperature"] = "auto"
        sampling.setdefault("temperature", 0.0)
        params = SamplingParams(**sampling, max_tokens=max_new_tokens, seed=seed, extra_args=extra or None)
        ids = self._ids(prompt)
        start = time.perf_counter()
        (found,) = self._engine.llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        output = found.outputs[0]
        return Generated(
            text=output.text,
            tokens=len(output.token_ids),
            prompt_tokens=len(ids),
            seconds=seconds,
            first_token_seconds=_first_token(found.metrics),
            stats=_drafts(output),
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        tokenizer = self._engine.tokenizer
        templated = bool(tokenizer.chat_template)
        if prompt.messages is not None and not templated:
            raise InputError(f"the prompt is a chat, and {self._setup.model} has no chat template: give it as text")
        if prompt.messages is None and not (templated and self._chat is not False):
            return list(tokenizer(prompt.text)["input_ids"])
        messages = list(prompt.messages or ({"role": "user", "content": prompt.text},))
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def close(self) -> None:
        """The engine ends with the process that holds it; what it composed is removed."""
        self._engine.folder.cleanup()


def _first_token(metrics: Any) -> float | None:
    """Seconds from a request's arrival to its first token, by the engine's own clocks."""
    found = getattr(metrics, "first_token_latency", None)
    return float(found) if found else None


def _drafts(output: Any) -> dict[str, Any]:
    """What speculation did for a request, where vLLM says so."""
    found = getattr(output, "spec_decode_metrics", None)
    return {} if found is None else dict(found.to_dict())
