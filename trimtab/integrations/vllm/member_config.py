"""What vLLM needs to build one member of a composite model beside its target. Tested with vLLM 0.31 and 0.32."""

from __future__ import annotations

import re

from vllm.config import ModelConfig, VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.models.utils import WeightsMapper


def member_config(target: VllmConfig, path: str, name: str) -> VllmConfig:
    """The engine's configuration with another model in it.

    What the engine decides for all (dtype of activations, length, parallelism, KV cache) stays; architecture, shapes
    and quantisation are the member's own.

    Args:
        target: of the composite.
        path: the member's directory.
        name: prefix of its layers.
    """
    shared = target.model_config
    model = ModelConfig(
        model=path,
        tokenizer=shared.tokenizer,
        tokenizer_mode=shared.tokenizer_mode,
        trust_remote_code=shared.trust_remote_code,
        dtype=shared.dtype,
        seed=shared.seed,
        max_model_len=shared.max_model_len,
        enforce_eager=shared.enforce_eager,
    )
    # without a quant_config vLLM derives it from the member's own config.json
    config = replace(target, quant_config=None, model_config=model)
    if config.quant_config is not None:
        # layers that a checkpoint leaves in full precision are listed by their names without the prefix
        config.quant_config.apply_vllm_mapper(WeightsMapper(orig_to_new_regex={re.compile(r"^(?!re:)"): f"{name}."}))
    return config
