from __future__ import annotations

import math

import pytest
import torch

from trimtab.integrations.transformers.loading import Loaded
from trimtab.synthesis.perplexity import perplexity

TEXTS = ["The capital of France is Paris.", "x", "Water boils at one hundred degrees, and freezes at zero.", "No."]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_is_the_definition(smollm2: Loaded) -> None:
    """Each text alone, without padding, in float64 from the logits on."""
    model, tokenizer = smollm2
    loss, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
        loss -= float(log_probs.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert perplexity(TEXTS, model, tokenizer) == pytest.approx(math.exp(loss / count), rel=1e-4)
    assert math.isnan(perplexity(["x"], model, tokenizer))
    shuffled = ["capital Paris The is of France."]
    assert perplexity(TEXTS[:1], model, tokenizer) < perplexity(shuffled, model, tokenizer) / 4
