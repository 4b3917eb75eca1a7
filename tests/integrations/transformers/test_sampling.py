"""Sampled text of the lossless mode is distributed as ordinary sampling.

20,000 draws of the next three tokens on each of three prompts are compared with the exact joint distribution, which
plain transformers gives in float64 (its model, its processors, every continuation enumerated). Six tokens are drawn,
so that windows and both precisions reach over the three that are counted. Chi-square over the continuations of
expected count 10 and more, the rest pooled. Each test rejects at p < 1e-4, so that a right
implementation fails one run of the three in 3,300; `test_power` shows that moving 2% of the mass is caught, and the
last two tests that a wrong acceptance rule is.
"""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, set_seed
from transformers.generation import logits_process as hf

from tests.conftest import tiny
from trimtab import QuantizedVerification
from trimtab.integrations.transformers import window_sampling

DRAWS, STEPS, DRAWN, ALPHA = 20_000, 3, 6, 1e-4
# The last tokens occurred before, so that prompt lookup drafts in the first window already, and the model gives the
# first two drafted tokens a probability of 0.3 to 0.5, where accepting and rejecting both matter.
PROMPTS = [[28, 23, 28, 44, 89, 28, 23], [74, 20, 31, 63, 74, 20], [44, 25, 28, 28, 44, 25]]
OPTIONS = {"do_sample": True, "temperature": 1.3, "top_k": 12, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.15}
# Four bits, so that full precision rejects often enough to matter.
LOSSLESS = QuantizedVerification(4, "lossless", window=2)


class CallersBias:
    """A processor of the caller's own, which reads the ids."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + 0.5 * torch.nn.functional.one_hot((input_ids[:, -1] * 5) % 97, 97)


def processors() -> LogitsProcessorList:
    """What `generate` makes of OPTIONS and the caller's processor, in its order."""
    return LogitsProcessorList(
        [
            hf.RepetitionPenaltyLogitsProcessor(OPTIONS["repetition_penalty"]),
            CallersBias(),
            hf.TemperatureLogitsWarper(OPTIONS["temperature"]),
            hf.TopKLogitsWarper(int(OPTIONS["top_k"])),
            hf.TopPLogitsWarper(OPTIONS["top_p"]),
            hf.MinPLogitsWarper(OPTIONS["min_p"]),
        ]
    )


@torch.no_grad()
def exact(model: PreTrainedModel, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Probability of every continuation of STEPS tokens, in float64."""
    double = copy.deepcopy(model).double()
    chain, found = processors(), {(): 1.0}
    for _ in range(STEPS):
        texts = list(found)
        ids = torch.tensor([[*prompt, *text] for text in texts])
        probs = chain(ids, double(ids, use_cache=False).logits[:, -1]).softmax(-1)
        found = {
            (*text, int(token)): found[text] * float(row[token])
            for text, row in zip(texts, probs, strict=True)
            for token in row.nonzero()[:, 0]
        }
    return found


def draw(model: PreTrainedModel, prompt: list[int], method: QuantizedVerification | None) -> Counter[tuple[int, ...]]:
    set_seed(0)
    found: Counter[tuple[int, ...]] = Counter()
    rows = 2_000
    for _ in range(DRAWS // rows):
        out = model.generate(
            torch.tensor([prompt] * rows),
            custom_generate=method,
            max_new_tokens=DRAWN,
            logits_processor=LogitsProcessorList([CallersBias()]),
            **OPTIONS,
        )
        found.update(map(tuple, out[:, len(prompt) : len(prompt) + STEPS].tolist()))
    return found


def p_value(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    if not set(counts) <= set(expected):
        return 0.0  # a token was drawn that has no probability
    total = sum(counts.values())
    frequent = [text for text, p in expected.items() if p * total >= 10]
    observed = np.array([counts[text] for text in frequent] + [total - sum(counts[text] for text in frequent)])
    wanted = np.array([expected[text] * total for text in frequent])
    wanted = np.append(wanted, total - wanted.sum())
    return float(stats.chisquare(observed, wanted * total / wanted.sum()).pvalue)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny("llama")


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_lossless_sampling_is_ordinary_sampling(model: PreTrainedModel, prompt: list[int]) -> None:
    expected = exact(model, prompt)
    assert p_value(draw(model, prompt, None), expected) > ALPHA, "the reference itself is wrong"
    assert p_value(draw(model, prompt, LOSSLESS), expected) > ALPHA


@pytest.mark.slow
def test_full_precision_drafts_are_ordinary_sampling(model: PreTrainedModel) -> None:
    """The other rule: drafts without probabilities, verified by the model itself."""
    expected = exact(model, PROMPTS[0])
    assert p_value(draw(model, PROMPTS[0], QuantizedVerification(16)), expected) > ALPHA


def test_power(model: PreTrainedModel) -> None:
    """2% of the mass moved from the likeliest continuation to the others is rejected."""
    expected = exact(model, PROMPTS[0])
    top = max(expected, key=lambda text: expected[text])
    shifted = {text: p + (-0.02 if text == top else 0.02 / (len(expected) - 1)) for text, p in expected.items()}
    texts = list(shifted)
    drawn = np.random.default_rng(0).multinomial(DRAWS, np.array([shifted[t] for t in texts]) / sum(shifted.values()))
    assert p_value(Counter(dict(zip(texts, drawn.tolist(), strict=True))), expected) < ALPHA


@pytest.mark.slow
def test_broken_acceptance_is_caught(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rejection p is sampled whole, the draft not taken out: the same test fails."""

    def careless(probs: Tensor, draft: Tensor, draft_probs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        accepted = (draft >= 0) & (torch.rand(len(draft)) < probs.gather(1, draft.clamp(0)[:, None])[:, 0])
        return torch.where(accepted, draft, torch.multinomial(probs, 1)[:, 0]), accepted

    monkeypatch.setattr(window_sampling, "sampled_token", careless)
    assert p_value(draw(model, PROMPTS[0], QuantizedVerification(16)), exact(model, PROMPTS[0])) < ALPHA


@pytest.mark.slow
def test_accepting_all_low_bit_tokens_is_caught(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the low-bit pass drew is kept wherever full precision would have rejected it."""
    real = window_sampling.sampled_token

    def gullible(probs: Tensor, draft: Tensor, draft_probs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if draft_probs is None:
            return real(probs, draft)
        token, accepted = real(probs, torch.full_like(draft, -1))
        return torch.where(draft >= 0, draft, token), accepted | (draft >= 0)

    monkeypatch.setattr(window_sampling, "sampled_token", gullible)
    assert p_value(draw(model, PROMPTS[0], LOSSLESS), exact(model, PROMPTS[0])) < ALPHA
