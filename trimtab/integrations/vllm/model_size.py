"""How many parameters the engine's model has."""

from __future__ import annotations

import torch
from vllm.config import ModelConfig

from ...errors import InputError


def parameter_count(model_config: ModelConfig) -> float:
    """Parameters of the model that transformers makes of the configuration, without making its weights.

    Raises:
        InputError: transformers knows no such model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config.hf_text_config)
    except Exception as error:  # whatever a model's own code raises
        raise InputError(
            f"the size of {model_config.model!r} cannot be told ({type(error).__name__}): "
            """give it, --additional-config '{"trimtab": {"temperature": {"model": "7B"}}}' say"""
        ) from error
    return float(sum(parameter.numel() for parameter in model.parameters()))
