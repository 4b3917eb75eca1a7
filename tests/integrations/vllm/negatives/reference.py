"""What requests with negatives are held against: `trimtab.Steer` in transformers, and float64 where it is a tie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.integrations.vllm.composite.running import generated, log_probs
from tests.integrations.vllm.family import Family
from trimtab import Steer

GAMMA = 0.3
"""Of the directory."""
EARLIER = (
    "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\n",
    "Once upon a time, in a small town by the river, there lived an old miller with his three sons. ",
    "The sea",
    "Sam had 12 marbles. He gave 5 to his sister and found 2 in the garden. How many marbles does Sam have now? " * 2,
)


def negatives(prompt: str, *which: int) -> list[str]:
    """Earlier texts, the prompt after each of them."""
    return [f"{EARLIER[index]}\n{prompt}" for index in which]


def expected_tokens(family: Family, prompt: list[int], tokens: int, arguments: dict[str, Any] | None) -> list[int]:
    asked = arguments or {}
    texts = asked.get("trimtab_negatives")
    processor = Steer(
        family.models["base"],
        float(asked.get("trimtab_gamma", GAMMA)),
        asked.get("trimtab_eta", 0.6) if texts else 0.0,
        [[family.tokenizer(text)["input_ids"] for text in texts]] if texts else None,
        asked.get("trimtab_plausibility"),
        expert=family.models["record"],
        balanced=bool(asked.get("trimtab_balanced", False)),
    )
    return generated(family.models["record"], [prompt], tokens, processor)[0]


def scores(family: Family, prompt: list[int], arguments: dict[str, Any] | None, text: list[int]) -> Tensor:
    """float64 log-probabilities `[vocab]` after `text`, which begins with the prompt."""
    asked = arguments or {}
    gamma = float(asked.get("trimtab_gamma", GAMMA))
    eta = asked.get("trimtab_eta", 0.6) if asked.get("trimtab_negatives") else 0.0
    expert, base = (log_probs(family.models[name], text) for name in ("record", "base"))
    found = (1 + gamma + (eta if asked.get("trimtab_balanced") else 0)) * expert - gamma * base
    if eta:
        ids = [family.tokenizer(negative)["input_ids"] for negative in asked["trimtab_negatives"]]
        each = [log_probs(family.models["record"], [*negative, *text[len(prompt) :]]) for negative in ids]
        found = found - eta * torch.stack(each).mean(0)
    found = found.log_softmax(-1)
    if beta := asked.get("trimtab_plausibility"):
        found[expert.exp() < beta * expert.exp().max()] = -torch.inf
    return found
