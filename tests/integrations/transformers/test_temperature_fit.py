from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, set_seed

from tests.conftest import SIZES
from trimtab import InputError
from trimtab.integrations.transformers.temperature_fit import fit_temperatures, sample_scores


class Ids:
    """A tokenizer whose texts are the ids."""

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(map(str, row.tolist())) for row in ids]


PROMPTS = [[5, 6, 7], [8, 9], [3, 4, 5, 6, 7, 8]]
ANSWERS = [["a"], ["b"], ["c"]]


def has_even(text: str, answer: str) -> float:
    return sum(int(token) % 2 == 0 for token in text.split()) / 8


def measure(model: PreTrainedModel, grid: list[float], **options: Any) -> torch.Tensor:
    options = {"samples": 3, "max_new_tokens": 8, "batch_size": 9} | options
    return sample_scores(model, Ids(), PROMPTS, ANSWERS, has_even, grid, **options)  # type: ignore[arg-type]


def test_scores_are_those_of_plain_generation(tiny_llama: PreTrainedModel) -> None:
    """Prompts of one length, one batch, the generation written out."""
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    grid = [0.3, 1.0, 1.7]
    found = sample_scores(
        tiny_llama, Ids(), ids.tolist(), ANSWERS[:2], has_even, grid, samples=2, max_new_tokens=8, seed=11  # type: ignore[arg-type]
    )  # fmt: skip
    for column, temperature in enumerate(grid):
        set_seed(11)
        rows = ids.repeat_interleave(2, dim=0)
        out = tiny_llama.generate(rows, do_sample=True, temperature=temperature, top_k=0, max_new_tokens=8)[:, 3:]
        shares = (out % 2 == 0).double().mean(1)
        assert torch.allclose(found[:, column], shares.view(2, 2).mean(1))


def test_scores_follow_the_prompts_through_sorting_and_batches(tiny_llama: PreTrainedModel) -> None:
    """At a temperature near zero sampling is greedy, whatever the batch."""
    found = measure(tiny_llama, [1e-4, 1.0], batch_size=2)
    for row, ids in enumerate(PROMPTS):
        out = tiny_llama.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8)[0, len(ids) :]
        assert found[row, 0] == (out % 2 == 0).double().mean()


def test_the_seed_decides_and_the_global_generator_is_left_alone(tiny_llama: PreTrainedModel) -> None:
    state = torch.get_rng_state()
    first, second, other = (measure(tiny_llama, [0.5, 1.5], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_the_models_own_filters_are_off(tiny_llama: PreTrainedModel) -> None:
    """A top-k of 1 in the generation config would make every temperature greedy."""
    plain = measure(tiny_llama, [0.5, 1.5])
    tiny_llama.generation_config.top_k = 1
    try:
        assert torch.equal(measure(tiny_llama, [0.5, 1.5]), plain)
    finally:
        tiny_llama.generation_config.top_k = 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [1.0, 0.5]}, "ascending"),
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [[1], [], [2]]}, r"prompts\[1\] has no tokens"),
        ({"answers": [["a"]]}, "1 entries for 3 prompts"),
        ({"answers": [["a"], "b", ["c"]]}, r"answers\[1\] is 'b'"),
        ({"samples": 0}, "samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": 600}, f"context is {SIZES['max_position_embeddings']}"),
    ],
)
def test_bad_input_is_refused(tiny_llama: PreTrainedModel, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"prompts": PROMPTS, "answers": ANSWERS, "grid": [0.5, 1.0], "scorer": has_even} | change
    with pytest.raises(InputError, match=message):
        sample_scores(tiny_llama, Ids(), **given)  # type: ignore[arg-type]


def test_abilities_that_do_not_fit_are_refused(tiny_llama: PreTrainedModel) -> None:
    for abilities, message in ((["CR"], "1 values for 3"), (["CR", "CR", "MATH"], "holds 'MATH'")):
        with pytest.raises(InputError, match=message):
            fit_temperatures(tiny_llama, Ids(), PROMPTS, ANSWERS, abilities, has_even, [0.5, 1.0])  # type: ignore[arg-type]
