"""How a data set is sampled: everything that decides its texts, beside the models and the seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """STEER's strengths, the pool of negatives and the sampler.

    gamma, eta and top_k are the defaults of O'Neill et al. 2023 (arXiv 2308.07645). `balanced` and `plausibility` are
    not the paper's: without them the coefficients sum to `1 - eta`, which heats the distribution by `1 / (1 - eta)`,
    2.5 times at the default eta, and the texts fall apart. `balanced=False, plausibility=None` is the paper's form.

    Args:
        gamma: away from the base, 0 or more.
        eta: away from the negatives, 0 or more.
        balanced: the expert's coefficient is `1 + gamma + eta`, so that eta does not flatten the distribution.
        plausibility: beta in (0, 1]: only tokens of at least beta times the expert's highest probability stay.
        negatives_per_row: negative prompts of a row, averaged in log space.
        negative_examples: texts of the pool in a negative prompt, the paper's k.
        separator: what stands between them, and before the prompt that follows.
        pool_growth: generated texts enter the pool.
        temperature: of the sampler, above 0; after STEER.
        top_k: tokens that the sampler keeps; 0 keeps all.
        max_new_tokens: of a text.
        stop: a text ends before any of these strings.
        chat: put prompts into the tokenizer's chat template, as the user's message.
        batch_size: texts generated together. A batch sees the pool as it was before it.
        seed: of everything drawn.

    Raises:
        InputError: a value is out of range.
    """

    gamma: float = 0.2
    eta: float = 0.6
    balanced: bool = True
    plausibility: float | None = 0.1
    negatives_per_row: int = 1
    negative_examples: int = 10
    separator: str = "\n\n"
    pool_growth: bool = True
    temperature: float = 1.0
    top_k: int = 10
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    chat: bool = False
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "eta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)!r}: give a number of at least 0")
        if self.plausibility is not None and not 0 < self.plausibility <= 1:
            raise InputError(f"plausibility is {self.plausibility!r}: give a number above 0, at most 1, or None")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature!r}: give a number above 0; texts are sampled")
        least = {"negatives_per_row": 1, "negative_examples": 1, "max_new_tokens": 1, "batch_size": 1, "top_k": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)!r}: give a whole number of at least {bound}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}: give a whole number from 0 to 2**63 - 1")
        if isinstance(self.stop, str) or "" in self.stop:
            raise InputError(f"stop is {self.stop!r}: give a tuple of strings that are not empty")

    @property
    def steered(self) -> bool:
        """Whether anything changes the expert's own distribution."""
        return self.gamma > 0 or self.eta > 0 or self.plausibility is not None
