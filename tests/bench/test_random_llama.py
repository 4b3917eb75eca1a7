"""The step that bench/decode_step.py times is a Llama's: against transformers' own, with the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from bench.decode_step import measure
from bench.random_llama import FORMATS, Cache, Linear, Shape, Step, Weights, random_weights

SHAPE = Shape(layers=2, hidden=128, intermediate=256, heads=4, kv_heads=2, vocab=200)


def linear(*weights: torch.Tensor) -> Linear:
    weight = torch.cat(weights)
    return lambda x: F.linear(x, weight)


@pytest.mark.parametrize("window", [1, 3])
@torch.no_grad()
def test_step_is_a_llamas(window: int) -> None:
    """In float32; a cache of 11 tokens, then the window."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SHAPE.vocab, hidden_size=SHAPE.hidden, intermediate_size=SHAPE.intermediate,
            num_hidden_layers=SHAPE.layers, num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.kv_heads,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, rms_norm_eps=1e-5, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(0, SHAPE.vocab, (2, 11 + window))
    past = model(ids[:, :11], use_cache=True).past_key_values
    room = (0, 0, 0, window)
    cache = Cache([F.pad(x.keys, room) for x in past.layers], [F.pad(x.values, room) for x in past.layers], window)
    weights = Weights([], linear(model.lm_head.weight))
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        weights.layers.append(
            {
                "qkv": linear(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
                "o": linear(attention.o_proj.weight),
                "gate_up": linear(mlp.gate_proj.weight, mlp.up_proj.weight),
                "down": linear(mlp.down_proj.weight),
            }
        )
    step = Step(SHAPE, weights, cache, model.get_input_embeddings()(ids[:, 11:]))
    expected = model(ids).logits[:, 11:].argmax(-1)
    assert torch.equal(step(), expected)
    assert torch.equal(step(), expected)  # a replay writes the same over itself


def test_bytes_are_those_of_the_weights() -> None:
    made = random_weights(SHAPE, FORMATS, torch.device("cpu"))
    each = [out * size for out, size in SHAPE.linears().values()]
    head = 2 * SHAPE.vocab * SHAPE.hidden
    assert made["bf16"].bytes == SHAPE.layers * 2 * sum(each) + head
    scales = 4 * sum(out for out, _ in SHAPE.linears().values())
    assert made["W8A8"].bytes == made["W8A16"].bytes == SHAPE.layers * (sum(each) + scales) + head


def test_every_format_is_measured() -> None:
    weights = random_weights(SHAPE, FORMATS, torch.device("cpu"), quantize_head=True)
    with torch.inference_mode():
        points = list(measure(SHAPE, weights, (1, 2), (1, 2), 8, 0.0, 1e10, torch.device("cpu")))
    assert [(p.batch, p.window, p.format) for p in points] == [
        (batch, window, name) for batch in (1, 2) for window in (1, 2) for name in FORMATS
    ]
    assert all(p.seconds > 0 and p.ratio_decode is not None for p in points)
