"""The check of an engine, named by a text: resolved as vLLM's front end does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from trimtab.errors import InputError
from trimtab.integrations.vllm.negatives.checks import checks_name
from trimtab.integrations.vllm.negatives.engine import limits_of, negative_ids, tokenizer_source


def config(directory: Path, settings: Any = None, **changes: Any) -> Any:
    """As much of a `VllmConfig` as is read; `changes` are attributes by `part__name`."""
    parts: dict[str, dict[str, Any]] = {
        "model": {
            "tokenizer": str(directory), "tokenizer_mode": "auto", "tokenizer_revision": None,
            "trust_remote_code": False, "skip_tokenizer_init": False, "use_mla": False, "max_model_len": 64,
        },
        "parallel": {
            "data_parallel_size": 1, "decode_context_parallel_size": 1, "prefill_context_parallel_size": 1,
        },
        "cache": {"cache_dtype": "auto", "kv_sharing_fast_prefill": False},
    }  # fmt: skip
    whole = {"speculative_config": None, "kv_transfer_config": None}
    for name, value in changes.items():
        part, _, attribute = name.partition("__")
        (parts[part] if attribute else whole)[attribute or part] = value
    named = {f"{part}_config": SimpleNamespace(**values) for part, values in parts.items()}
    extra = {} if settings is None else {"trimtab": {"steer": settings}}
    return SimpleNamespace(**named, **whole, additional_config=extra)


def refused(directory: Path, extra_args: dict[str, Any], max_tokens: int = 8, v2: bool = False, **options: Any) -> str:
    """What the front end answers; "" if it lets the request in."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import validate_logits_processors_parameters

    names = [checks_name(config(directory, **options))]
    params = SamplingParams(max_tokens=max_tokens, extra_args=extra_args)
    try:
        if v2:
            v2_processors = pytest.importorskip("vllm.v1.worker.gpu.sample.logits_processor")  # since 0.31
            v2_processors.build_custom_logits_processors_params_validator(names)(params)
        else:
            validate_logits_processors_parameters(names, params)
    except VLLMValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("v2", [False, True])
def test_both_front_ends_find_it_by_its_name(smollm2_directory: Path, v2: bool) -> None:
    assert not refused(smollm2_directory, {"trimtab_negatives": ["The sea is"]}, v2=v2)
    assert "trimtab_negatives[1] has 62 tokens, up to 7" in refused(
        smollm2_directory, {"trimtab_negatives": ["The sea is", "The sea" * 31]}, v2=v2
    )
    assert "max_tokens to 3 or less" in refused(smollm2_directory, {"trimtab_negatives": ["The sea" * 31]}, v2=v2)


@pytest.mark.parametrize("name", ["GammaV1", "GammaV2", "AlphaV1", "AlphaV2"])
def test_what_needs_no_engine_is_refused_beside_it(name: str) -> None:
    from vllm import SamplingParams

    from trimtab.integrations.vllm import per_request

    processor = getattr(per_request, name)
    processor.validate_params(SamplingParams())
    processor.validate_params(SamplingParams(extra_args={"other": 1}))
    with pytest.raises(InputError, match=r"^trimtab_plausibility is "):
        processor.validate_params(SamplingParams(extra_args={"trimtab_plausibility": 2}))


def test_two_engines_in_a_process_have_limits_of_their_own(smollm2_directory: Path) -> None:
    asked = {"trimtab_negatives": ["a", "b"]}
    assert "give at most 1" in refused(smollm2_directory, asked, settings={"negatives": 1})
    assert not refused(smollm2_directory, asked)
    assert "`negative_tokens` is 15" in refused(smollm2_directory, asked, settings={"negative_tokens": 15})
    assert not refused(smollm2_directory, asked, settings={"negative_tokens": 16})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"negative_tokens": 0}}, "its settings for steer say so"),
        ({"settings": {"negatives": 0}}, "its settings for steer say so"),
        ({"speculative_config": "given"}, "it drafts tokens"),
        ({"model__skip_tokenizer_init": True}, "it has no tokenizer"),
        ({"model__use_mla": True}, "its target has latent attention"),
        ({"parallel__data_parallel_size": 2}, "data_parallel_size"),
        ({"kv_transfer_config": "given"}, "it hands keys and values on"),
    ],
    ids=str,
)
def test_engines_that_cannot_keep_negatives_say_why(smollm2_directory: Path, changes: Any, reason: str) -> None:
    assert reason in refused(smollm2_directory, {"trimtab_negatives": ["a"]}, **changes)
    assert not refused(smollm2_directory, {"trimtab_negatives": ["a"], "trimtab_eta": 0}, **changes)
    assert not refused(smollm2_directory, {"trimtab_gamma": 1}, **changes)


@pytest.mark.parametrize("settings", [{"negatives": -1}, {"negative_tokens": 1.5}, {"negatives": True}], ids=str)
def test_a_bad_setting_stops_the_engine(smollm2_directory: Path, settings: Any) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        limits_of(config(smollm2_directory, settings))


def test_an_unknown_setting_stops_the_engine(smollm2_directory: Path) -> None:
    with pytest.raises(InputError, match="has 'tokens': give of negative_tokens, negatives"):
        limits_of(config(smollm2_directory, {"tokens": 3}))


def test_a_text_that_begins_with_bos_gets_no_second_one(smollm2_directory: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    source = tokenizer_source(config(smollm2_directory))
    texts = ["The sea is", f"{tokenizer.bos_token}The sea is"]
    plain, marked = negative_ids(source, texts)
    assert plain == tokenizer(texts[0])["input_ids"]
    assert marked == [tokenizer.bos_token_id, *tokenizer(texts[0], add_special_tokens=False)["input_ids"]]
