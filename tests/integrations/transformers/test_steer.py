"""STEER's own options; its decoding modes are tested beside those of fusion in test_logit_fusion.py."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from bench.models import first_layers, perturbed
from bench.naive import log_probs
from tests.conftest import tiny
from trimtab import InputError, LogitFusion, Steer

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def expert() -> PreTrainedModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def base(expert: PreTrainedModel) -> PreTrainedModel:
    return first_layers(perturbed(expert, 1, 0.5), 1)


def test_nothing_asked_is_the_expert_itself(base: PreTrainedModel) -> None:
    scores = torch.randn(2, 97)
    assert torch.equal(Steer(base, 0.0, 0.0)(torch.tensor([PROMPT] * 2), scores), scores)


@pytest.mark.parametrize("balanced", [False, True])
def test_first_token_is_the_formula(expert: PreTrainedModel, base: PreTrainedModel, balanced: bool) -> None:
    """Lists and tensors of negatives; the coefficient of the balanced form."""
    negatives = [[[9, 10], torch.tensor([11, 12, 13])]]
    out = expert.generate(
        torch.tensor([PROMPT]),
        logits_processor=[Steer(base, 0.3, 0.5, negatives, expert=expert, balanced=balanced)],
        max_new_tokens=1,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    negative = (log_probs(expert, [9, 10]) + log_probs(expert, [11, 12, 13])) / 2
    first = 1.3 + 0.5 * balanced
    expected = first * log_probs(expert, PROMPT) - 0.3 * log_probs(base, PROMPT) - 0.5 * negative
    torch.testing.assert_close(out.scores[0][0], expected.log_softmax(-1).float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["steer", "fusion"])
def test_a_processor_is_freed_with_its_last_name(expert: PreTrainedModel, base: PreTrainedModel, method: str) -> None:
    """It holds keys and values: a loop that makes one a batch must not wait for a collection of garbage."""
    gc.collect()
    gc.disable()
    try:
        processor = Steer(base, 0.3, 0.5, [[[9]]], expert=expert) if method == "steer" else LogitFusion(base, [base])
        expert.generate(torch.tensor([PROMPT]), logits_processor=[processor], max_new_tokens=3, do_sample=False)
        alive = weakref.ref(processor)
        del processor
        assert alive() is None
    finally:
        gc.enable()


def test_plausibility_reads_the_expert(base: PreTrainedModel) -> None:
    scores = torch.randn(2, 97)
    ids = torch.tensor([PROMPT] * 2)
    got = Steer(base, 0.5, 0.0, plausibility=0.3)(ids, scores)
    probs = scores.softmax(-1)
    kept = probs >= 0.3 * probs.amax(-1, keepdim=True)
    assert torch.equal(got > -torch.inf, kept)
    assert torch.equal(Steer(base, 0.0, 0.0, plausibility=0.3)(ids, scores), scores.masked_fill(~kept, -torch.inf))


def test_one_entry_of_negatives_serves_all_prompts(expert: PreTrainedModel, base: PreTrainedModel) -> None:
    ids = torch.tensor([PROMPT, [9, 10, 11, 12]])
    kwargs: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    shared, each = (
        expert.generate(ids, logits_processor=[Steer(base, 0.2, 0.6, negatives, expert=expert)], **kwargs)
        for negatives in ([[[3, 4]]], [[[3, 4]], [[3, 4]]])
    )
    assert torch.equal(shared, each)


def test_a_base_that_is_not_needed_is_not_run(expert: PreTrainedModel, base: PreTrainedModel) -> None:
    assert Steer(base, 0.0, 0.5, [[[3]]], expert=expert)._base is None
    assert Steer(base, 0.5, 0.0)._expert is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gamma": -0.1}, r"gamma is -0\.1"),
        ({"eta": -1.0}, r"eta is -1\.0"),
        ({}, "negatives is None with eta above 0"),
        ({"negatives": []}, r"negatives is \[\]"),
        ({"negatives": [[]]}, r"negatives\[0\] is empty"),
        ({"negatives": [[[]]]}, r"negatives\[0\]\[0\] is \[\]"),
        ({"negatives": [[3, 4]]}, r"negatives\[0\]\[0\] is 3.*nested as row, prompt, token"),
        ({"negatives": [[[3]]]}, "expert is None and eta is 0.6"),
        ({"eta": 0.0, "plausibility": 0.0}, r"plausibility is 0\.0"),
        ({"eta": 0.0, "plausibility": 1.5}, r"plausibility is 1\.5"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(base: PreTrainedModel, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Steer(base, **kwargs)


def test_what_a_call_lacks_is_named(expert: PreTrainedModel, base: PreTrainedModel) -> None:
    steer = Steer(base, 0.2, 0.6, [[[3]], [[4]]], expert=expert)
    with pytest.raises(InputError, match="negatives has 2 entries for a batch of 3"):
        expert.generate(torch.tensor([PROMPT] * 3), logits_processor=[steer], max_new_tokens=2)
    with pytest.raises(InputError, match="attention_mask is None outside generate"):
        steer(torch.tensor([PROMPT] * 2), torch.randn(2, 97))
    with pytest.raises(InputError, match="no inputs_embeds"):
        steer(torch.zeros(2, 0, dtype=torch.long), torch.randn(2, 97))
    with pytest.raises(InputError, match="expert is on cpu and base is on meta"):
        Steer(first_layers(base, 1).to("meta"), 0.2, 0.6, [[[3]]], expert=expert)
