"""Which models can be decoded token after token."""

from __future__ import annotations

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig

from ...errors import InputError


def check_causal(config: PreTrainedConfig, name: str) -> None:
    """Refuse configurations that are not those of a decoder-only language model.

    Args:
        config: the model's configuration.
        name: what the caller called the model; the message repeats it.

    Raises:
        InputError: an encoder-decoder, an encoder, or a model that `AutoModelForCausalLM` cannot load.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name!r} is an encoder-decoder model ({kind}): give a decoder-only language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{name!r} is a {kind} model, which AutoModelForCausalLM cannot load: give a decoder-only language model"
        )
    # BERT and its kin are in the causal mapping too, but attend both ways unless told otherwise.
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise InputError(f"{name!r} is an encoder ({kind}), not causal: give a decoder-only language model")
