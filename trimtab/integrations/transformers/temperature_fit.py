"""Scores of a model on labelled prompts at a grid of temperatures: what a table of temperature selection is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...decoding.temperature import ABILITIES
from ...decoding.temperature_fit import AbilityFit, check_grid, fit_ability
from ...errors import InputError
from ...scorers import Scorer, best_score
from .padding import pad_left
from .runner import context_length

PAPER_GRID = (0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 1.9)
"""The temperatures of arXiv 2506.07295."""


def fit_temperatures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[str]],
    abilities: Sequence[str],
    scorer: Scorer,
    grid: Sequence[float] = PAPER_GRID,
    *,
    samples: int = 4,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, AbilityFit]:
    """Sample every prompt at every temperature, score the texts, and sum up by ability.

    Arguments and errors as `sample_scores`.

    Args:
        abilities: of each prompt, out of `ABILITIES`.

    Returns:
        By ability, in the order of `ABILITIES`, those that occur.

    Raises:
        InputError: there is no such ability, or not one for each prompt.
    """
    if len(abilities) != len(prompts):
        raise InputError(f"abilities has {len(abilities)} values for {len(prompts)} prompts: give one each")
    for ability in abilities:
        if ability not in ABILITIES:
            raise InputError(f"abilities holds {ability!r}: use {', '.join(ABILITIES)}")
    scores = sample_scores(
        model, tokenizer, prompts, answers, scorer, grid,
        samples=samples, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    at, of = torch.tensor(grid, dtype=torch.float64), list(abilities)
    return {
        ability: fit_ability(scores[[name == ability for name in of]], at, seed=seed)
        for ability in ABILITIES
        if ability in of
    }


@torch.inference_mode()
def sample_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[str]],
    scorer: Scorer,
    grid: Sequence[float] = PAPER_GRID,
    *,
    samples: int = 4,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Mean scores of sampled texts.

    Sampling is by temperature alone: top-k, top-p and penalties of the model's generation config are off, since they
    would hide the fall-off that is looked for. The seed of a batch is the same at every temperature, so that
    temperatures are compared under the same random numbers. The global generators are left as they were.

    Args:
        model: in evaluation mode.
        tokenizer: decodes, without special tokens.
        prompts: token ids, chat template applied.
        answers: right answers of each prompt.
        scorer: text and answer to a number from 0.
        grid: ascending temperatures.
        samples: texts of a prompt and temperature.
        max_new_tokens: of a text, which also ends where the model ends it.
        batch_size: texts generated together; another size gives other samples.
        seed: of the first batch, the next ones count up.

    Returns:
        `[prompts, grid]` float64.

    Raises:
        InputError: the grid cannot be measured; there is no prompt, an empty one, or one without answers; a count is
            under 1; a prompt and its continuation do not fit into the model's context; the scorer gives no number.
    """
    check_grid(grid)
    _check(model, prompts, answers, max_new_tokens)
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} is {value}: give a whole number of at least 1")
    # prompts of like length together, so that little is padding
    rows = [row for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])) for _ in range(samples)]
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    sums = torch.zeros(len(prompts), len(grid), dtype=torch.float64)
    write = _writer(model, max_new_tokens)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), tqdm(total=len(grid) * len(rows), unit="text", leave=False) as bar:
        for column, temperature in enumerate(grid):
            bar.set_description(f"temperature {temperature:g}")
            for number, batch in enumerate(batches):
                torch.manual_seed(seed + number)
                ids = write([prompts[row] for row in batch], temperature)
                texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
                for row, text in zip(batch, texts, strict=True):
                    sums[row, column] += best_score(scorer, text, answers[row])
                bar.update(len(batch))
    return sums / samples


def _writer(model: PreTrainedModel, max_new_tokens: int) -> Callable[[list[Sequence[int]], float], Tensor]:
    """From prompts and a temperature to the new tokens, `[prompts, new]`."""
    own = model.generation_config
    ends = own.eos_token_id
    first_end = ends[0] if isinstance(ends, list) else ends
    pad = own.pad_token_id if own.pad_token_id is not None else first_end if first_end is not None else 0

    def write(batch: list[Sequence[int]], temperature: float) -> Tensor:
        ids = pad_left(batch, pad).to(model.device)
        lengths = torch.tensor([len(row) for row in batch], device=model.device)
        mask = torch.arange(ids.shape[1], device=model.device) >= (ids.shape[1] - lengths)[:, None]
        config = GenerationConfig(
            do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
            eos_token_id=ends, pad_token_id=pad, bos_token_id=own.bos_token_id,
        )  # fmt: skip
        out = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
        new: Tensor = out[:, ids.shape[1] :]
        return new

    return write


def _check(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[str]], max_new_tokens: int
) -> None:
    if not len(prompts):
        raise InputError("prompts is empty: give at least one")
    if len(answers) != len(prompts):
        raise InputError(f"answers has {len(answers)} entries for {len(prompts)} prompts: give one each")
    limit = context_length(model)
    for index, (ids, right) in enumerate(zip(prompts, answers, strict=True)):
        if not len(ids):
            raise InputError(f"prompts[{index}] has no tokens: give some text")
        if isinstance(right, str) or not len(right):
            raise InputError(f"answers[{index}] is {right!r}: give a list of right answers")
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise InputError(
                f"prompts[{index}] has {len(ids)} tokens and max_new_tokens is {max_new_tokens}, but the model's "
                f"context is {limit}: shorten one of them"
            )
