"""Models that the tests run on: tiny random ones of every supported family, and the embedded real ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import trimtab

if TYPE_CHECKING:
    from trimtab.integrations.transformers.loading import Loaded

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2")


def tiny(family: str) -> PreTrainedModel:
    """A random model with logits large enough to have a clear argmax."""
    torch.manual_seed(0)
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=24))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"} | {"hidden_size": 128})
        )
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    elif family == "gemma3":
        types = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**SIZES, sliding_window=16, layer_types=types, query_pre_attn_scalar=32)
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=None
            )
        )
        model.generation_config.pad_token_id = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2 if "lm_head" not in name else 0.5)
        else:
            # biases and norms that are all 0 or 1 would hide a forgotten one
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    return model.eval()


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@pytest.fixture(scope="session")
def tiny_llama() -> PreTrainedModel:
    return tiny("llama")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for torch's operators and the native ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices gain little from more, and on a busy machine threads lose a hundredfold waiting for each other."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def smollm2() -> Loaded:
    return trimtab.load("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Loaded:
    return trimtab.load("gemma3-270m")
