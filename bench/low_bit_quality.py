"""The low-bit weights of a run against full precision: agreement on greedy text, perplexity on natural text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.compare.bootstrap import bootstrap
from trimtab.compare.prompts import Prompt
from trimtab.integrations.transformers.runner import Forward, forward_of

from .arms import Arm, low_bit_model
from .measure import Task
from .quality import agreeing, negative_log_likelihood
from .report import summarize_agreement

NATURAL = ("summarization", "rag")
"""Groups whose prompts hold long natural text, for perplexity."""
PERPLEXITY_TOKENS = 512
"""Of each text at most: enough to tell two precisions apart."""
PERPLEXITY_TEXTS = 40


def low_bit_quality(
    arms: dict[str, Arm],
    tasks: Sequence[Task],
    prompts: Sequence[Prompt],
    first: dict[tuple[str, str, str], list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any] | None:
    """The low-bit weights against full precision; None without an arm that has any."""
    found = low_bit_model(arms, model)
    if found is None or "plain" not in arms:
        return None
    arm, low = found
    counts = []
    for task in tqdm(tasks, desc="agreement", unit="prompt"):
        greedy = first["plain", task.id, task.group]
        counts.append((task.group, agreeing(low.forward, model.device, task.ids, greedy), len(greedy)))
    return {
        "weights_of": arm,
        "argmax_agreement": summarize_agreement(counts),
        "perplexity": perplexity(low.forward, model, tokenizer, prompts),
    }


def perplexity(
    low: Forward, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Of natural text, at both precisions: prompts of the groups in `NATURAL`, or all if there are none."""
    natural = [prompt for prompt in prompts if prompt.group in NATURAL] or list(prompts)
    texts = [tokenizer(prompt.text)["input_ids"][:PERPLEXITY_TOKENS] for prompt in natural[:PERPLEXITY_TEXTS]]
    texts = [ids for ids in texts if len(ids) > 1]
    full = forward_of(model)
    columns: list[tuple[float, float, float]] = []
    for ids in tqdm(texts, desc="perplexity", unit="text"):
        of_full, of_low = (negative_log_likelihood(forward, model.device, ids) for forward in (full, low))
        columns.append((of_full, of_low, len(ids) - 1))
    of_full, of_low, tokens = (sum(column) for column in zip(*columns, strict=True))
    change = bootstrap(list(zip(*columns, strict=True)), lambda sums: 100 * np.expm1((sums[1] - sums[0]) / sums[2]))
    return {
        "groups": sorted({prompt.group for prompt in natural}),
        "texts": len(texts),
        "tokens": int(tokens),
        "full": math.exp(of_full / tokens),
        "low_bit": math.exp(of_low / tokens),
        "change_percent": change.as_dict(),
    }
