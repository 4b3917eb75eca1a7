"""Smoothing changes weights, not what the model computes; its scales are SmoothQuant's equation 4."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.conftest import tiny
from trimtab.errors import InputError
from trimtab.kernels.quantize import quantize_
from trimtab.kernels.smoothing import smooth_

PROMPTS = [list(range(1, 30)), [5, 90, 7]]
IDS = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))


def with_mlp_bias(model: PreTrainedModel) -> PreTrainedModel:
    for layer in model.model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            linear.bias = nn.Parameter(torch.randn(linear.out_features, dtype=linear.weight.dtype))
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_the_function_stays(family: str, alpha: float) -> None:
    model = with_mlp_bias(tiny(family).double())
    smoothed = copy.deepcopy(model)
    smooth_(smoothed, PROMPTS, alpha)
    assert not torch.allclose(smoothed.model.layers[0].mlp.gate_proj.weight, model.model.layers[0].mlp.gate_proj.weight)
    before, after = model(IDS).logits, smoothed(IDS).logits
    # transformers' norms compute in float32, whatever the model's dtype
    assert (after - before).abs().max() < 1e-4 * before.std()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_products_of_gains_and_weights_stay_to_the_last_digits(family: str) -> None:
    """What a reader computes of a normalised x: (gain * x) @ W.T, so gain[j] W[n, j] must not change."""
    offset = 1 if family == "gemma3" else 0
    model = with_mlp_bias(tiny(family).double())
    smoothed = copy.deepcopy(model)
    smooth_(smoothed, PROMPTS)
    for before, after in zip(model.model.layers, smoothed.model.layers, strict=True):
        norm = "pre_feedforward_layernorm" if offset else "post_attention_layernorm"
        for source in ("input_layernorm", norm):
            gains = [getattr(layer, source).weight + offset for layer in (before, after)]
            assert not torch.allclose(*gains, rtol=1e-2)
        gate = [(getattr(layer, norm).weight + offset) * layer.mlp.gate_proj.weight for layer in (before, after)]
        torch.testing.assert_close(*gate, rtol=1e-12, atol=1e-14)
        down = [
            layer.mlp.down_proj.weight * ((getattr(layer, norm).weight + offset) @ layer.mlp.up_proj.weight.T)
            + layer.mlp.down_proj.weight * layer.mlp.up_proj.bias
            for layer in (before, after)
        ]
        torch.testing.assert_close(*down, rtol=1e-10, atol=1e-12)
        value = [layer.input_layernorm.weight + offset for layer in (before, after)]
        value = [gain * layer.self_attn.v_proj.weight for gain, layer in zip(value, (before, after), strict=True)]
        torch.testing.assert_close(*value, rtol=1e-12, atol=1e-14)


@torch.no_grad()
def test_scales_are_those_of_the_paper() -> None:
    model = tiny("llama")
    seen: list[np.ndarray] = []
    attention = model.model.layers[0].self_attn
    handle = attention.q_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].flatten(0, -2).double().numpy())
    )
    for ids in PROMPTS:
        model(torch.tensor([ids]))
    handle.remove()
    largest = np.abs(np.concatenate(seen)).max(0)
    readers = [getattr(attention, f"{name}_proj").weight.double().numpy() for name in "qkv"]
    scale = largest**0.7 / np.abs(np.concatenate(readers)).max(0) ** 0.3
    gain = model.model.layers[0].input_layernorm.weight.double().numpy()
    smooth_(model, PROMPTS, 0.7)
    np.testing.assert_allclose(model.model.layers[0].input_layernorm.weight.numpy(), gain / scale, rtol=1e-5)
    np.testing.assert_allclose(attention.k_proj.weight.numpy(), readers[1] * scale, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_outliers_cost_w8a8_less() -> None:
    """A channel of the norm fifty times as loud as the rest, as language models have them."""
    model = tiny("llama")
    for layer in model.model.layers:
        layer.input_layernorm.weight[7] *= 50
        for name in "qkv":
            getattr(layer.self_attn, f"{name}_proj").weight[:, 7] /= 50
    expected = model(IDS).logits
    plain = quantize_(copy.deepcopy(model), "w8a8")
    calibrated = quantize_(copy.deepcopy(model), "w8a8", calibration=PROMPTS)
    errors = [float((low(IDS).logits - expected).square().mean()) for low in (plain, calibrated)]
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "is empty"),
        (["text"], "token ids"),
        ([[1, 97]], r"calibration\[0\] .*0 to 96"),
        ([[1], []], r"calibration\[1\]"),
        ([[-1]], r"calibration\[0\]"),
        (torch.rand(2, 3), r"calibration\[0\]"),
    ],
)
def test_bad_prompts(prompts: object, message: str, tiny_llama: PreTrainedModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    with pytest.raises(InputError, match=message):
        smooth_(tiny_llama, prompts)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_llama.state_dict().items())


def test_bad_models() -> None:
    with pytest.raises(InputError, match="of type 'gpt2'"):
        smooth_(tiny("gpt2"), PROMPTS)
    with pytest.raises(InputError, match="of type None"):
        smooth_(nn.Linear(2, 2), PROMPTS)
    with pytest.raises(InputError, match="low bits already"):
        smooth_(quantize_(tiny("llama")), PROMPTS)
    with pytest.raises(InputError, match=r"alpha is 1\.5"):
        smooth_(tiny("llama"), PROMPTS, 1.5)
