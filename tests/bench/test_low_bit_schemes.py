"""Smoothing changes weights, not what the model computes."""

from __future__ import annotations

import torch

from bench.low_bit_schemes import smoothed
from tests.conftest import tiny


def test_smoothing_keeps_the_function() -> None:
    model = tiny("llama")
    ids = torch.randint(0, 97, (2, 20))
    other = smoothed(model, 0.5, [list(range(30))])
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3)
    before, after = (m.model.layers[0].mlp.gate_proj.weight for m in (model, other))
    assert not torch.allclose(before, after)
