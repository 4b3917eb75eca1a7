"""How likely a reference model finds texts: the price at which diversity was bought."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..integrations.transformers.padding import pad_right
from ..integrations.transformers.runner import context_length

_BATCH = 8


@torch.inference_mode()
def perplexity(texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """`exp` of the mean negative log-likelihood of a token, all texts together; low is coherent, or dull.

    Each text stands alone, as the tokenizer encodes it; its first token has nothing before it and is not counted. Of a
    text longer than the context the rest is left out.

    Args:
        texts: any number.
        model: a causal LM, best one that had no part in writing them.
        tokenizer: its own.

    Returns:
        At least 1; NaN where no text has two tokens.
    """
    limit = context_length(model)
    ids = [list(tokenizer(text, verbose=False)["input_ids"])[:limit] for text in texts]
    rows = sorted((row for row in ids if len(row) > 1), key=len)
    loss = math.fsum(_loss(model, rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))
    tokens = sum(len(row) - 1 for row in rows)
    return math.exp(loss / tokens) if tokens else math.nan


def _loss(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> float:
    """Sum of the negative log-likelihoods in nats."""
    ids: Tensor = pad_right(rows).to(model.device)
    mask = pad_right([[1] * len(row) for row in rows]).to(model.device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return float(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
