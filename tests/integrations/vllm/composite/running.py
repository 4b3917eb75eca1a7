"""A vLLM engine on the CPU for a test, and what its tokens are held against."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

TIE = 1e-3
"""Nats, float64: tokens nearer than this may be told apart by the rounding of float32."""

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # this process has run torch: a fork of it would inherit locked thread pools
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


@contextmanager
def running_engine(model: Path, **options: Any) -> Iterator[Any]:
    """A `vllm.LLM` in float32, stopped at the end."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    llm = LLM(str(model), **{"dtype": "float32", "enforce_eager": True, "disable_log_stats": False} | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def greedy(llm: Any, prompts: Sequence[list[int]], tokens: int, arguments: Sequence[dict[str, Any] | None]) -> Any:
    """vLLM's outputs of all prompts in flight together, each with its own `extra_args`."""
    from vllm import SamplingParams

    params = [SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=a) for a in arguments]
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def new_tokens(outputs: Any) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def counter(llm: Any, name: str) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


def generated(
    model: PreTrainedModel, prompts: Sequence[list[int]], tokens: int, processor: Any = None
) -> list[list[int]]:
    """Greedy tokens by transformers, the prompts as one left-padded batch."""
    width, pad = max(map(len, prompts)), model.generation_config.pad_token_id or 0
    out = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        logits_processor=[] if processor is None else [processor],
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=[],
    )
    return out[:, width:].tolist()


def assert_same_or_tied(
    prompts: Sequence[list[int]],
    found: Sequence[list[int]],
    expected: Sequence[list[int]],
    scores: Callable[[list[int], int], Tensor],
) -> int:
    """Equal tokens, or at the first that differs two that float64 holds for equal; the number of such rows.

    Args:
        prompts: of the rows.
        found: tokens after each of them.
        expected: the reference's.
        scores: float64 log-probabilities `[vocab]` after a text, and the row it is of.
    """
    ties = 0
    for row, (prompt, ours, theirs) in enumerate(zip(prompts, found, expected, strict=True)):
        assert len(ours) == len(theirs), row
        if ours == theirs:
            continue
        place = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        after = scores([*prompt, *theirs[:place]], row)
        gap = float(after.amax() - after[[ours[place], theirs[place]]].amin())
        assert gap < TIE, f"row {row}, token {place}: {ours[place]} is {gap} nats below {theirs[place]}"
        ties += 1
    return ties


@torch.no_grad()
def log_probs(model: PreTrainedModel, text: list[int]) -> Tensor:
    """`[vocab]` float64 after `text`, from a float64 pass of a float32 model without a cache."""
    wide = model.double()
    try:
        return wide(torch.tensor([text]), use_cache=False).logits[0, -1].log_softmax(-1)
    finally:
        model.float()
