"""A small base from a large model: drop layers, then heal what is left on the large model's own distribution."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from tqdm import tqdm
from transformers import PreTrainedModel

from bench.models import with_layers

FREQUENT = 6144
"""Tokens over which the two distributions are compared: the corpus' most frequent ones."""
VALIDATION = 8
"""Blocks that are not trained on."""


@torch.no_grad()
def choose_layers(model: PreTrainedModel, blocks: Tensor, count: int) -> list[int]:
    """Drop one layer at a time, the one whose absence moves the next-token distribution least (KL divergence)."""
    head = _Head(model, blocks)
    wanted = head.log_probs(model.model(blocks).last_hidden_state)
    kept = list(range(model.config.num_hidden_layers))
    with tqdm(total=len(kept) - count, desc="choosing layers", unit="layer") as bar:
        while len(kept) > count:
            losses = [
                _divergence(wanted, head.log_probs(with_layers(model, rest).model(blocks).last_hidden_state)).item()
                for rest in ([*kept[:place], *kept[place + 1 :]] for place in range(len(kept)))
            ]
            kept.pop(losses.index(min(losses)))
            bar.update()
    return kept


def heal(small: PreTrainedModel, large: PreTrainedModel, blocks: Tensor, *, epochs: int, rate: float) -> list[float]:
    """Train all of `small` but embedding and head; the divergence on unseen blocks, in nats, before and after.

    The loss is KL(large || small) over the corpus' frequent tokens and the distance of the last hidden states, which
    lie in one space since the head is shared.
    """
    head = _Head(large, blocks)
    targets = _hidden(large, blocks)
    unseen = torch.arange(VALIDATION)
    found = [_validate(small, head, blocks[unseen], targets[unseen])]
    small.requires_grad_(True)
    small.get_input_embeddings().weight.requires_grad_(False)
    trained = [weight for weight in small.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    order = list(_pairs(len(blocks), epochs))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(order), pct_start=0.05)
    bar = tqdm(order, desc="healing", unit="step")
    for step, chosen in enumerate(bar):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = small.model(blocks[chosen], use_cache=False).last_hidden_state.float()
        wanted = targets[chosen].float()
        distance = (hidden - wanted).square().sum(-1).mean() / wanted.square().sum(-1).mean()
        loss = distance + _divergence(head.log_probs(wanted), head.log_probs(hidden))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    small.requires_grad_(False)
    found.append(_validate(small, head, blocks[unseen], targets[unseen]))
    return found


class _Head:
    """The output head over the frequent tokens only."""

    def __init__(self, model: PreTrainedModel, blocks: Tensor) -> None:
        counts = torch.bincount(blocks.flatten(), minlength=model.config.vocab_size)
        self.weight = model.lm_head.weight.detach()[counts.argsort(descending=True, stable=True)[:FREQUENT]].float()

    def log_probs(self, hidden: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = hidden @ self.weight.T
        return log_softmax(logits.float(), -1)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    return (wanted.exp() * (wanted - found)).sum(-1).mean()


@torch.no_grad()
def _hidden(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    """`[blocks, tokens, width]` bfloat16: the large model reads each block once, not once an epoch."""
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for first in tqdm(range(0, len(blocks), 4), desc="reading", unit="batch"):
            found.append(model.model(blocks[first : first + 4], use_cache=False).last_hidden_state.bfloat16())
    return torch.cat(found)


@torch.no_grad()
def _validate(small: PreTrainedModel, head: _Head, blocks: Tensor, targets: Tensor) -> float:
    hidden = small.model(blocks, use_cache=False).last_hidden_state
    return _divergence(head.log_probs(targets.float()), head.log_probs(hidden)).item()


def _pairs(blocks: int, epochs: int) -> Iterator[Tensor]:
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = VALIDATION + torch.randperm(blocks - VALIDATION, generator=shuffle)
        yield from order[: len(order) // 2 * 2].view(-1, 2)
