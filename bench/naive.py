"""Fusion and STEER as plain transformers without any cache, one row at a time, in float64 where it is arithmetic.

What the tests and the comparison of decoding modes hold processors against; nothing here is part of trimtab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel


def log_probs(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False, logits_to_keep=1).logits[0, -1].double().log_softmax(-1)


def kl(a: Tensor, b: Tensor) -> float:
    return float((a.exp() * (a - b)).sum())


class NaiveRows(LogitsProcessor):
    """Calls `score(index, prompt, new, log p)` for each row; knows the padded prompts beforehand."""

    def __init__(self, mask: Tensor, score: Callable[[int, list[int], list[int], Tensor], Tensor]) -> None:
        self.mask, self.score = mask, score

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = []
        for row, tokens in enumerate(input_ids.tolist()):
            index = row * len(self.mask) // len(input_ids)
            mask = self.mask[index].tolist()
            prompt = [token for token, seen in zip(tokens, mask, strict=False) if seen]
            rows.append(self.score(index, prompt, tokens[len(mask) :], scores[row].double().log_softmax(-1)))
        return torch.stack(rows).float()


def naive_fusion(base: PreTrainedModel, expert: PreTrainedModel, mask: Tensor, alpha: float | None) -> NaiveRows:
    """One expert; alpha by a grid over [0, 2] and finer grids around its best point."""

    def score(index: int, prompt: list[int], new: list[int], p: Tensor) -> Tensor:
        q, e = log_probs(base, prompt + new), log_probs(expert, prompt + new)
        chosen = alpha
        if chosen is None:
            low, high = 0.0, 2.0
            for _ in range(3):
                grid = np.linspace(low, high, 41)
                fused = (p + torch.tensor(grid)[:, None] * (e - q)).log_softmax(-1)
                one, other = (fused.exp() * (fused - p)).sum(-1), (p.exp() * (p - fused)).sum(-1)
                best = int(((one - kl(e, q)) ** 2 + (other - kl(q, e)) ** 2).argmin())
                chosen, low, high = float(grid[best]), grid[max(best - 1, 0)], grid[min(best + 1, 40)]
        assert chosen is not None
        return (p + chosen * (e - q)).log_softmax(-1)

    return NaiveRows(mask, score)


def naive_steer(
    base: PreTrainedModel,
    expert: PreTrainedModel,
    mask: Tensor,
    negatives: Sequence[Sequence[list[int]]],
    gamma: float,
    eta: float,
) -> NaiveRows:
    def score(index: int, prompt: list[int], new: list[int], p: Tensor) -> Tensor:
        contexts = negatives[index * len(negatives) // len(mask)]
        negative = torch.stack([log_probs(expert, context + new) for context in contexts]).mean(0)
        return ((1 + gamma) * p - gamma * log_probs(base, prompt + new) - eta * negative).log_softmax(-1)

    return NaiveRows(mask, score)
