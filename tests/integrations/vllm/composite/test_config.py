"""What is set and refused before an engine of a composite starts, and which row has whose strength on V1."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from trimtab.errors import InputError
from trimtab.integrations.vllm import versions
from trimtab.integrations.vllm.composed_directory import ARCHITECTURE
from trimtab.integrations.vllm.composite_config import CompositeConfig, register
from trimtab.integrations.vllm.strengths import SEARCH

FUSION = {
    "format": 1,
    "method": "fusion",
    "architectures": ["OwnForCausalLM"],
    "members": ["trimtab_base", "trimtab_expert_a"],
    "strength": None,
    "alpha_max": 2.0,
    "active": "one",
}
STEER = FUSION | {"method": "steer", "members": ["trimtab_base"], "strength": 0.3}


def config(found: Any = FUSION, *, v2: bool = False, drafts: str | None = None, **changes: Any) -> Any:
    model = {"hf_config": SimpleNamespace(trimtab=found), "logits_processors": None, "enable_prompt_embeds": False}
    tokenizer = {"tokenizer": "a", "tokenizer_mode": "auto", "tokenizer_revision": None, "trust_remote_code": False}
    texts = {"skip_tokenizer_init": False, "use_mla": False, "max_model_len": 64}
    kinds = ("data_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")
    return SimpleNamespace(
        model_config=SimpleNamespace(**(model | tokenizer | texts | changes)),
        additional_config={},
        parallel_config=SimpleNamespace(**dict.fromkeys(kinds, 1)),
        cache_config=SimpleNamespace(cache_dtype="auto", kv_sharing_fast_prefill=False),
        kv_transfer_config=None,
        speculative_config=None if drafts is None else SimpleNamespace(method=drafts),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=None, max_num_seqs=6),
        load_config=SimpleNamespace(load_format="auto"),
        use_v2_model_runner=v2,
    )


@pytest.fixture(autouse=True)
def tested_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused for its release is another test's."""
    monkeypatch.setattr(versions, "installed", lambda: "0.32.0")


@pytest.mark.parametrize(
    ("found", "v2", "name"),
    [(FUSION, False, "AlphaV1"), (STEER, False, "GammaV1"), (FUSION, True, "AlphaV2"), (STEER, True, "GammaV2")],
)
def test_requests_are_checked_by_a_processor_of_the_runners_kind(found: Any, v2: bool, name: str) -> None:
    from trimtab.integrations.vllm import per_request

    given = config(found, v2=v2, logits_processors=["theirs:Own"])
    CompositeConfig.verify_and_update_config(given)
    *ours, theirs = given.model_config.logits_processors
    assert theirs == "theirs:Own"
    assert ours[0] == f"trimtab.integrations.vllm.per_request:{name}"
    # what negatives may be depends on the engine, which only its own check knows
    assert len(ours) == (2 if found is STEER else 1)
    assert issubclass(getattr(per_request, name), per_request.ProcessorV2 if v2 else per_request.ProcessorV1)
    assert given.scheduler_config.disable_hybrid_kv_cache_manager is True


def test_the_targets_own_hook_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    seen: list[Any] = []
    own = SimpleNamespace(verify_and_update_config=seen.append, verify_and_update_model_config=seen.append)
    monkeypatch.setitem(MODELS_CONFIG_MAP, "OwnForCausalLM", own)
    given = config()
    CompositeConfig.verify_and_update_config(given)
    CompositeConfig.verify_and_update_model_config(given.model_config)
    assert seen == [given, given.model_config]


def test_what_a_composite_cannot_serve_is_refused() -> None:
    for drafts, v2, message in [
        ("ngram", False, "speculative_config is given with Model Runner V1"),
        ("eagle3", True, "method 'eagle3', which reads one model's hidden states: use one of ngram"),
    ]:
        with pytest.raises(InputError, match=message):
            CompositeConfig.verify_and_update_config(config(v2=v2, drafts=drafts))
    CompositeConfig.verify_and_update_config(config(v2=True, drafts="ngram"))
    with pytest.raises(InputError, match="enable_prompt_embeds is set"):
        CompositeConfig.verify_and_update_config(config(enable_prompt_embeds=True))
    other = config()
    other.load_config.load_format = "bitsandbytes"
    with pytest.raises(InputError, match="load_format is 'bitsandbytes'"):
        CompositeConfig.verify_and_update_config(other)
    with pytest.raises(InputError, match="cannot be read"):
        CompositeConfig.verify_and_update_config(config(None))


def test_an_untested_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: "0.40.0")
    with pytest.raises(InputError, match=r"a composite model needs vLLM .*, found 0\.40\.0"):
        CompositeConfig.verify_and_update_config(config())


def test_registering_imports_no_model() -> None:
    code = (
        "import sys; from trimtab.integrations.vllm.plugin import register; register(); register(); "
        "assert 'trimtab.integrations.vllm.composite' not in sys.modules; "
        "assert 'trimtab.integrations.vllm.per_request' not in sys.modules; "
        "from vllm import ModelRegistry; "
        f"assert {ARCHITECTURE!r} in ModelRegistry.get_supported_archs()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    register()


def test_rows_follow_their_requests() -> None:
    """Requests come, go and change places as V1's batch reports it."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from trimtab.integrations.vllm.per_request import ROWS, AlphaV1

    given = config()
    processor = AlphaV1(given, torch.device("cpu"), False)
    rows = getattr(given.model_config, ROWS)

    def asks(value: Any) -> SamplingParams:
        return SamplingParams(extra_args=None if value is None else {"trimtab_alpha": value})

    def update(removed: Any = (), added: Any = (), moved: Any = ()) -> list[float]:
        new = [(row, asks(value), None, []) for row, value in added]
        processor.update_state(BatchUpdate(batch_size=6, removed=removed, added=new, moved=moved))
        return [row.push[0] for row in rows._rows]

    assert update(added=[(0, 0.5), (1, None), (2, 0), (3, "dynamic")])[:4] == [0.5, SEARCH, 0.0, SEARCH]
    assert update(moved=[(0, 2, MoveDirectionality.SWAP)])[:4] == [0.0, SEARCH, 0.5, SEARCH]
    assert update(removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)])[:3] == [0.0, 0.5, SEARCH]
    # a new request takes the row of one that left
    assert update(removed=[0], added=[(0, 1)])[0] == 1.0
    processor.update_state(None)
    assert update()[:2] == [1.0, 0.5]
    logits = torch.randn(2, 5)
    assert processor.apply(logits) is logits
