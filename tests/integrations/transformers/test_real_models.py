"""The two embedded models, real text: lossless is plain generate, quantized is close to it, in batches too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.integrations.transformers.test_quantized_verification import assert_same_text
from trimtab import QuantizedVerification, Runner
from trimtab.integrations.transformers.state import SequenceState

if TYPE_CHECKING:
    from trimtab.integrations.transformers.loading import Loaded

PROMPTS = [
    row["turns"][0]
    for row in map(json.loads, (Path(__file__).parents[3] / "bench/data/spec_bench_60.jsonl").read_text().splitlines())
]


def short_prompts(count: int) -> list[str]:
    """The shortest of each stretch of the file, so that every group is there and a CPU is done in a minute."""
    size = len(PROMPTS) // count
    return [min(PROMPTS[i * size : (i + 1) * size], key=len) for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_lossless_is_plain_generate(name: str, request: pytest.FixtureRequest) -> None:
    """One by one, and eight ragged prompts in one batch."""
    model, tokenizer = request.getfixturevalue(name)
    method = QuantizedVerification(mode="lossless")
    prompts = short_prompts(8)
    plain = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        plain.append(model.generate(**inputs, max_new_tokens=24, do_sample=False))
        ours = model.generate(**inputs, custom_generate=method, max_new_tokens=24, do_sample=False)
        assert_same_text(model, ours, plain[-1], inputs["input_ids"].shape[1])
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    out = model.generate(**batch, custom_generate=method, max_new_tokens=24, do_sample=False)
    width = batch["input_ids"].shape[1]
    for row, alone in enumerate(plain):
        length = int(batch["attention_mask"][row].sum())
        ours = torch.cat([alone[0, :length], out[row, width:]])[None]
        assert_same_text(model, ours, alone, length)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_quantized_agrees_with_full_precision(name: str, request: pytest.FixtureRequest) -> None:
    """Teacher-forced greedy tokens on the model's own text: the benchmark has the figure, this is its smoke test."""
    loaded: Loaded = request.getfixturevalue(name)
    model, tokenizer = loaded
    method = QuantizedVerification()
    low = method.prepare(model)
    assert low is not None
    agreed = total = 0
    for prompt in short_prompts(6):
        inputs = tokenizer(prompt, return_tensors="pt")
        text = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        start = inputs["input_ids"].shape[1]
        with torch.no_grad():
            full = model(text).logits[0, start - 1 : -1].argmax(-1)
        run = Runner(low.forward, SequenceState(1), model.device)
        ours = run.extend(text, [text.shape[1]])[0, start - 1 : -1].argmax(-1)
        agreed, total = agreed + int((ours == full).sum()), total + len(full)
    # About 190 tokens: three standard errors below the 98.5% that the benchmark measures on thousands.
    assert agreed / total >= 0.955


@pytest.mark.slow
def test_sampling_and_batches_run_on_gemma(gemma3: Loaded) -> None:
    model, tokenizer = gemma3
    tokenizer.padding_side = "left"
    batch = tokenizer(
        ["The sea is", "Once upon a time, in a small town by the river,"], return_tensors="pt", padding=True
    )
    out = model.generate(
        **batch,
        custom_generate=QuantizedVerification(mode="lossless"),
        max_new_tokens=12,
        do_sample=True,
        temperature=0.8,
        return_dict_in_generate=True,
    )
    assert out.stats.new_tokens > 12
    assert out.stats.reverified > 0
