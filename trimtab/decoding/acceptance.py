"""Which drafted tokens to keep: prefix match for greedy decoding, rejection sampling otherwise.

A verification pass gives one distribution for every position of the window `[last token, drafts]`. Position by
position, a row emits a token and goes on as long as that token is its draft, so a window without drafts is an
ordinary decoding step, and a row emits the accepted prefix of its drafts and one token of the verifier.

Rejection sampling is Leviathan et al. 2023, arXiv 2211.17192, algorithm 1: accept draft x with probability
min(1, p(x)/q(x)), else sample from the normalised max(p - q, 0). The tokens that result are distributed exactly as p.
A drafter without probabilities (prompt lookup) is the case q(x) = 1: accept with probability p(x), else sample from p
without x.
"""

from __future__ import annotations

import torch
from torch import Tensor

NO_DRAFT = -1
"""In a tensor of drafts: the row has none at this position."""


def greedy_token(scores: Tensor, draft: Tensor) -> tuple[Tensor, Tensor]:
    """The argmax of a position, and whether it is the draft.

    Args:
        scores: `[..., vocab]` logits.
        draft: `[...]` int64, `NO_DRAFT` where there is none.

    Returns:
        `[...]` int64 tokens and `[...]` bool.
    """
    token = scores.argmax(-1)
    return token, token == draft


def sampled_token(
    probs: Tensor,
    draft: Tensor,
    draft_probs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """One position of rejection sampling; the emitted token is distributed exactly as `probs`.

    Args:
        probs: `[batch, vocab]` float32 probabilities of the verifier.
        draft: `[batch]` int64, `NO_DRAFT` where there is none.
        draft_probs: `[batch, vocab]` float32, the distribution that each draft was drawn from; None for a drafter
            without probabilities.
        generator: source of randomness, torch's global one by default.

    Returns:
        `[batch]` int64 tokens and `[batch]` bool, whether the draft was accepted.
    """
    drafted = draft != NO_DRAFT
    if not bool(drafted.any()):
        return torch.multinomial(probs, 1, generator=generator)[:, 0], drafted
    index = draft.clamp(min=0)[:, None]
    target = probs.gather(1, index)[:, 0]
    proposal = torch.ones_like(target) if draft_probs is None else draft_probs.gather(1, index)[:, 0]
    uniform = torch.rand(target.shape, generator=generator, device=probs.device)
    accepted = drafted & (uniform * proposal < target)
    if bool(accepted.all()):
        return draft, accepted

    residual = probs.scatter(1, index, 0.0) if draft_probs is None else (probs - draft_probs).clamp_(min=0.0)
    # Rounding can leave nothing of p - q although the draft was rejected; then p is q, and p itself is right.
    usable = drafted & (residual.sum(-1) > 0)
    final = torch.multinomial(torch.where(usable[:, None], residual, probs), 1, generator=generator)[:, 0]
    return torch.where(accepted, draft, final), accepted
