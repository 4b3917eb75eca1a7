"""The ragged state gives each row what the model gives that row alone, whatever was appended and forgotten before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import tiny
from trimtab import InputError, Runner
from trimtab.integrations.transformers import decoder, runner
from trimtab.integrations.transformers.module_forward import ModuleForward, check_supported
from trimtab.integrations.transformers.padding import pad_right
from trimtab.integrations.transformers.state import SequenceState

TOLERANCE = 2e-4


def reference(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Logits of a whole sequence without any cache."""
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


def forwards(model: PreTrainedModel) -> list[runner.Forward]:
    """Every forward pass that the library may choose for this model."""
    found: list[runner.Forward] = [ModuleForward(model)]
    if decoder.supports(model):
        lean = decoder.LeanDecoder(model)
        torch_only = decoder.LeanDecoder(model)
        torch_only._native = None
        found += [lean, torch_only]
    return found


def test_lean_forward_covers_what_it_says() -> None:
    """Each family in SUPPORTED is tested, and GPT-2 stands for those that run through their own modules."""
    covered = {tiny(family).config.model_type for family in ("llama", "mistral", "qwen2", "qwen3", "gemma3")}
    assert covered == set(decoder.SUPPORTED)
    assert not decoder.supports(tiny("gpt2"))


def texts_and_logits(model: PreTrainedModel, forward: runner.Forward) -> list[tuple[list[int], Tensor]]:
    """Ragged prompts and then ragged windows, past the sliding window; each text with the logits of its last tokens."""
    torch.manual_seed(1)
    texts = [torch.randint(1, 97, (length,)).tolist() for length in (3, 41, 17)]
    run = Runner(forward, SequenceState(3, capacity=8), model.device)
    found = [(list(text), row[None]) for text, row in zip(texts, run.prefill(texts), strict=True)]
    for counts in ([1, 1, 1], [2, 5, 3], [0, 4, 1]):
        new = [torch.randint(1, 97, (count,)).tolist() for count in counts]
        logits = run.extend(pad_right(new), counts)
        texts = [text + tokens for text, tokens in zip(texts, new, strict=True)]
        found += [
            (text, logits[row, :count]) for row, (text, count) in enumerate(zip(texts, counts, strict=True)) if count
        ]
    assert run.lengths == [len(text) for text in texts]
    return found


def test_windows_equal_the_model(tiny_model: PreTrainedModel) -> None:
    for forward in forwards(tiny_model):
        for text, logits in texts_and_logits(tiny_model, forward):
            expected = reference(tiny_model, text)[-len(logits) :]
            torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0.01)


def test_bfloat16_is_as_near_to_float32_as_the_model(tiny_model: PreTrainedModel) -> None:
    """The order of roundings may differ from the modules', their size may not."""
    model = tiny(_family(tiny_model)).to(torch.bfloat16)
    for forward in forwards(model):
        ours, own = 0.0, 0.0
        for text, logits in texts_and_logits(model, forward):
            exact = reference(tiny_model, text)[-len(logits) :]
            ours += float((logits.float() - exact).square().sum())
            own += float((reference(model, text)[-len(logits) :].float() - exact).square().sum())
            assert logits.dtype == torch.bfloat16
        assert ours < 1.5 * own


def _family(model: PreTrainedModel) -> str:
    return model.config.model_type.removesuffix("_text")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 6), min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3)
        ),
        min_size=1,
        max_size=5,
    )
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_any_history_of_extend_and_rollback(family: str, history: list[tuple[list[int], list[float]]]) -> None:
    """After any appends and roll-backs the state is that of the tokens that remain."""
    model = _cached(family)
    generator = torch.Generator().manual_seed(0)
    run = Runner.of(model, 3)
    texts = [[5, 6], [7], [8, 9, 10]]
    run.prefill(texts)
    for counts, keep in history:
        if not any(counts):
            continue
        new = [torch.randint(1, 97, (count,), generator=generator).tolist() for count in counts]
        run.extend(pad_right(new), counts)
        texts = [text + tokens for text, tokens in zip(texts, new, strict=True)]
        lengths = [max(1, round(len(text) * share)) for text, share in zip(texts, keep, strict=True)]
        run.rollback(lengths)
        texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    logits = run.extend(torch.full((3, 1), 11), [1, 1, 1])
    for row, text in enumerate(texts):
        torch.testing.assert_close(logits[row, 0], reference(model, [*text, 11])[-1], atol=TOLERANCE, rtol=0.01)


_MODELS: dict[str, PreTrainedModel] = {}


def _cached(family: str) -> PreTrainedModel:
    return _MODELS.setdefault(family, tiny(family))


def test_prefill_in_chunks_equals_one_pass(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [torch.randint(1, 97, (length,)).tolist() for length in (5, 33, 64, 65)]
    whole = Runner.of(tiny_llama, 4).prefill(rows)
    monkeypatch.setattr(runner, "PREFILL_CHUNK", 16)
    torch.testing.assert_close(Runner.of(tiny_llama, 4).prefill(rows), whole, atol=TOLERANCE, rtol=0.01)


def test_rows_leave_the_batch(tiny_llama: PreTrainedModel) -> None:
    run = Runner.of(tiny_llama, 3)
    texts = [[3, 4, 5], [6], [7, 8]]
    run.prefill(texts)
    run.state.select([2, 0])
    logits = run.extend(torch.tensor([[9], [10]]), [1, 1])
    torch.testing.assert_close(logits[0, 0], reference(tiny_llama, [7, 8, 9])[-1], atol=TOLERANCE, rtol=0.01)
    torch.testing.assert_close(logits[1, 0], reference(tiny_llama, [3, 4, 5, 10])[-1], atol=TOLERANCE, rtol=0.01)


def test_state_grows_by_doubling(tiny_llama: PreTrainedModel) -> None:
    run = Runner.of(tiny_llama, 1, capacity=4)
    run.prefill([[1, 2, 3]])
    for _ in range(20):
        run.extend(torch.tensor([[4]]), [1])
    assert run.lengths == [23]
    assert 23 <= run.state.capacity <= 46


def test_eager_attention_runs_too() -> None:
    model = tiny("gpt2")
    model.set_attn_implementation("eager")
    rows = [[3, 4, 5, 6], [7]]
    got = Runner.of(model, 2).prefill(rows)
    expected = torch.stack([reference(model, row)[-1] for row in rows])
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0.01)


def test_rollback_checks_its_argument(tiny_llama: PreTrainedModel) -> None:
    run = Runner.of(tiny_llama, 2)
    run.prefill([[1, 2], [3]])
    with pytest.raises(ValueError, match=r"lengths\[1\] is 2"):
        run.rollback([2, 2])
    with pytest.raises(ValueError, match="1 entries for 2 rows"):
        run.rollback([1])


def test_context_is_a_limit(tiny_llama: PreTrainedModel) -> None:
    run = Runner.of(tiny_llama, 1)
    with pytest.raises(InputError, match=r"513 tokens.*context of 512"):
        run.prefill([[1] * 513])


def test_unsupported_models_are_refused_by_name() -> None:
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        MambaConfig,
        MambaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8))
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder"):
        check_supported(t5)
    with pytest.raises(InputError, match=r"MambaForCausalLM has .*cannot be rolled back"):
        check_supported(MambaForCausalLM(MambaConfig(**small)))
    with pytest.raises(InputError, match="BloomForCausalLM takes no position_ids"):
        check_supported(BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)))
    split = tiny("llama")
    split.lm_head.to("meta")
    with pytest.raises(InputError, match="LlamaForCausalLM lies on 2 devices"):
        check_supported(split)
