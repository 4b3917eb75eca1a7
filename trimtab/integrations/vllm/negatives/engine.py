"""What an engine's configuration says of negative prompts. Tested with vLLM 0.31 and 0.32."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ....errors import InputError
from ..settings import settings
from .requests import Limits

SECTION = "steer"
DEFAULTS = {"negatives": 8, "negative_tokens": 8192}
"""Of `--additional-config '{"trimtab": {"steer": {...}}}'`."""


class TokenizerSource(NamedTuple):
    """Where the engine's tokenizer comes from; all of it goes into JSON."""

    name: str
    mode: str
    revision: str | None
    trust_remote_code: bool


def limits_of(vllm_config: Any) -> Limits:
    """Raises InputError if a setting is no count."""
    given = DEFAULTS | settings(vllm_config, SECTION, DEFAULTS)
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(
                f'additional_config["trimtab"]["{SECTION}"]["{name}"] is {value!r}: give a count, 0 for no negatives'
            )
    longest = vllm_config.model_config.max_model_len
    return Limits(_refusal(vllm_config, given), given["negatives"], given["negative_tokens"], longest)


def _refusal(vllm_config: Any, given: dict[str, int]) -> str:
    model, parallel, cache = vllm_config.model_config, vllm_config.parallel_config, vllm_config.cache_config
    reasons = {
        "its settings for steer say so": not all(given.values()),
        "it drafts tokens (speculative_config)": vllm_config.speculative_config is not None,
        "it has no tokenizer (skip_tokenizer_init)": model.skip_tokenizer_init,
        "its target has latent attention": model.use_mla,
        "it is one of several that share their experts (data_parallel_size)": parallel.data_parallel_size > 1,
        "it splits texts over devices (context parallelism)": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "it hands keys and values on (kv_transfer_config)": vllm_config.kv_transfer_config is not None,
        "its keys and values have scales of their own (kv_cache_dtype)": cache.cache_dtype.endswith("per_token_head"),
        "it skips layers in prefill (kv_sharing_fast_prefill)": cache.kv_sharing_fast_prefill,
    }
    return next((reason for reason, found in reasons.items() if found), "")


def tokenizer_source(vllm_config: Any) -> TokenizerSource:
    """Of an engine that has a tokenizer."""
    model = vllm_config.model_config
    return TokenizerSource(
        str(model.tokenizer), str(model.tokenizer_mode), model.tokenizer_revision, bool(model.trust_remote_code)
    )


@functools.lru_cache(4)
def tokenizer(source: TokenizerSource) -> Any:
    """Not the server's own, which other threads are using."""
    from vllm.tokenizers import get_tokenizer

    return get_tokenizer(
        source.name,
        tokenizer_mode=source.mode,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
    )


def negative_ids(source: TokenizerSource, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, read like the prompt of a completion; one that begins with BOS gets no second one."""
    found = tokenizer(source)
    bos = getattr(found, "bos_token", None)
    return [
        list(found.encode(text, add_special_tokens=not (bos is not None and text.startswith(bos)))) for text in texts
    ]
