"""Short sampled texts of an engine, held against all that plain transformers says they can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from scipy import stats
from transformers import PreTrainedModel

Shares = dict[tuple[int, ...], float]


@torch.no_grad()
def text_shares(models: Sequence[PreTrainedModel], prompt: list[int], temperature: float, top_k: int) -> Shares:
    """The probability of every text that can be sampled, each of its tokens from a model of its own."""
    shares: Shares = {(): 1.0}
    for model in models:
        longer = {}
        for text, share in shares.items():
            logits = model(torch.tensor([[*prompt, *text]])).logits[0, -1].double()
            best = (logits / temperature).topk(top_k)
            for token, probability in zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True):
                longer[(*text, token)] = share * probability
        shares = longer
    return shares


def assert_drawn_from(shares: Shares, texts: Sequence[Sequence[int]]) -> None:
    """Chi-square over all texts; error rate 1e-3."""
    found = Counter(map(tuple, texts))
    assert set(found) <= set(shares)
    often = sorted((text for text, share in shares.items() if share * len(texts) >= 5), key=shares.__getitem__)
    observed = [found[text] for text in often]
    expected = [shares[text] * len(texts) for text in often]
    # what is hardly ever written is one class with the rarest of the others
    observed[0] += len(texts) - sum(observed)
    expected[0] += len(texts) - sum(expected)
    assert stats.chisquare(observed, expected).pvalue > 1e-3
