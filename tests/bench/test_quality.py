"""Agreement, likelihood and ties, each held against transformers' own logits."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from bench import quality
from bench.quality import TieJudge, agreeing, negative_log_likelihood
from trimtab.integrations.transformers.runner import forward_of

PROMPT, LENGTH = [5, 6, 7, 8], 12


@pytest.fixture
def greedy(tiny_llama: PreTrainedModel) -> list[int]:
    out = tiny_llama.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=LENGTH)
    tokens: list[int] = out[0, len(PROMPT) :].tolist()
    return tokens


@pytest.mark.parametrize("chunk", [3, 128])
def test_full_precision_agrees_with_itself(
    tiny_llama: PreTrainedModel, greedy: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "CHUNK", chunk)
    forward = forward_of(tiny_llama)
    assert agreeing(forward, tiny_llama.device, PROMPT, greedy) == LENGTH
    assert agreeing(forward, tiny_llama.device, PROMPT, [*greedy[:-1], (greedy[-1] + 1) % 97]) == LENGTH - 1


@pytest.mark.parametrize("chunk", [3, 128])
def test_likelihood_is_that_of_transformers(
    tiny_llama: PreTrainedModel, greedy: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "CHUNK", chunk)
    ids = torch.tensor([[*PROMPT, *greedy]])
    with torch.no_grad():
        expected = tiny_llama(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    found = negative_log_likelihood(forward_of(tiny_llama), tiny_llama.device, ids[0].tolist())
    assert found == pytest.approx(expected, rel=1e-4)


def test_judge_tells_a_tie_from_an_error(tiny_llama: PreTrainedModel, greedy: list[int]) -> None:
    judge = TieJudge(tiny_llama)
    assert judge("lossless", "1", PROMPT, greedy, greedy) is None
    with torch.no_grad():
        logits = tiny_llama(torch.tensor([[*PROMPT, *greedy[:4]]])).logits[0, -1]
    values, order = logits.topk(3)
    for rank in (1, 2):
        other = [*greedy[:4], int(order[rank]), *greedy[5:]]
        found = judge("lossless", "1", PROMPT, other, greedy)
        assert found is not None
        assert found.position == 4
        assert found.top2_gap == pytest.approx(float(values[0] - values[1]), rel=1e-3)
        assert found.shortfall == pytest.approx(float(values[0] - values[rank]), rel=1e-3)
        assert not found.is_tie(found.shortfall)
        assert found.is_tie(found.shortfall * 1.001)


def test_a_text_that_stops_early_is_no_tie(tiny_llama: PreTrainedModel, greedy: list[int]) -> None:
    found = TieJudge(tiny_llama)("full", "1", PROMPT, greedy[:5], greedy)
    assert found is not None
    assert math.isinf(found.shortfall)
