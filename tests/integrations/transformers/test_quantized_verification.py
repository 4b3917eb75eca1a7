"""Quantised verification inside `model.generate`, held against plain transformers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

from tests.conftest import tiny
from trimtab import InputError, LowBitConfig, LowBitModel, QuantizedVerification
from trimtab.decoding.prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from trimtab.integrations.transformers.loading import Loaded

# prompts that repeat themselves, so that prompt lookup has something to find
ROWS = [[5, 6, 7, 8, 9, 5, 6, 7], [11, 12, 11, 12, 11], [20, 21, 22], [3] * 9]
TIE = 1e-3


def padded(rows: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    ids = [f + row if side == "left" else row + f for f, row in zip(fill, rows, strict=True)]
    mask = [
        [0] * len(f) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(f)
        for f, row in zip(fill, rows, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def assert_same_text(
    model: PreTrainedModel, ours: Tensor, theirs: Tensor, start: int, mask: Tensor | None = None
) -> None:
    """Equal token for token, or first different where the top two logits are a tie in float64."""
    width = max(ours.shape[1], theirs.shape[1])
    pad = model.generation_config.pad_token_id or 0
    ours, theirs = (torch.nn.functional.pad(t, (0, width - t.shape[1]), value=pad) for t in (ours, theirs))
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if torch.equal(a, b):
            continue
        first = int((a != b).nonzero()[0])
        assert first >= start
        keep = slice(0, first) if mask is None else torch.cat([mask[row].bool(), torch.ones(first - start).bool()])
        exact = _double(model)(a[:first][keep][None], use_cache=False).logits[0, -1]
        top = exact.topk(2).values
        assert top[0] - top[1] < TIE, f"row {row} differs at {first}, top-2 gap {top[0] - top[1]:.4f}"


_DOUBLES: dict[int, PreTrainedModel] = {}


@torch.no_grad()
def _double(model: PreTrainedModel) -> PreTrainedModel:
    import copy

    if id(model) not in _DOUBLES:
        _DOUBLES[id(model)] = copy.deepcopy(model).double()
    return _DOUBLES[id(model)]


# -- lossless, greedy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_lossless_batch_equals_generate_row_by_row(tiny_model: PreTrainedModel, side: str) -> None:
    bits = 16 if tiny_model.config.model_type == "gpt2" else 8  # GPT-2 has no nn.Linear to quantise
    method = QuantizedVerification(bits, "lossless", window=4)
    inputs = padded(ROWS, side)
    out = tiny_model.generate(**inputs, custom_generate=method, max_new_tokens=24, do_sample=False)
    for row, prompt in enumerate(ROWS):
        alone = tiny_model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        width = inputs["input_ids"].shape[1]
        ours = torch.cat([torch.tensor(prompt), out[row, width:]])[None]
        assert_same_text(tiny_model, ours, alone, len(prompt))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_lossless_at_every_precision(tiny_llama: PreTrainedModel, bits: int) -> None:
    ids = torch.tensor([ROWS[0]])
    ours = tiny_llama.generate(
        ids, custom_generate=QuantizedVerification(bits=bits, mode="lossless"), max_new_tokens=40, do_sample=False
    )
    assert_same_text(tiny_llama, ours, tiny_llama.generate(ids, max_new_tokens=40, do_sample=False), ids.shape[1])


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 6, "eos_token_id": list(range(2, 60))},
        {"bad_words_ids": [[5], [6, 7]]},
        {"suppress_tokens": [5, 6, 7], "begin_suppress_tokens": [8]},
        {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": [30]},
        {"forced_eos_token_id": 30, "eos_token_id": [30]},
        {"prefix_allowed_tokens_fn": lambda row, ids: range(10 * row, 10 * row + 40)},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("mode", ["lossless", "quantized"])
def test_every_processor_sees_what_generate_shows(
    tiny_llama: PreTrainedModel, options: dict[str, Any], mode: str
) -> None:
    """Greedy batches with transformers' own processors; `quantized` at 16 bits verifies drafts with them."""
    method = QuantizedVerification(bits=16 if mode == "quantized" else 8, mode=mode, window=4)  # type: ignore[arg-type]
    inputs = padded(ROWS)
    kwargs = {"max_new_tokens": 16, "do_sample": False, **options}
    ours = tiny_llama.generate(**inputs, custom_generate=method, **kwargs)
    theirs = tiny_llama.generate(**inputs, **kwargs)
    assert_same_text(tiny_llama, ours, theirs, inputs["input_ids"].shape[1], inputs["attention_mask"])


class RowBias(LogitsProcessor):
    """A caller's processor that tells rows apart by index, reads the ids, and needs the whole batch."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert input_ids.shape[0] == scores.shape[0] == self.rows
        bias = torch.zeros_like(scores)
        index = torch.arange(self.rows)
        bias[index, (input_ids[:, -1] + 7 * index) % 97] = 3.0
        return scores + bias


def test_callers_processor_in_a_ragged_batch(tiny_llama: PreTrainedModel) -> None:
    inputs = padded(ROWS)
    kwargs = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": [5, 30]}
    ours = tiny_llama.generate(
        **inputs,
        custom_generate=QuantizedVerification(mode="lossless"),
        logits_processor=LogitsProcessorList([RowBias(4)]),
        **kwargs,
    )
    theirs = tiny_llama.generate(**inputs, logits_processor=LogitsProcessorList([RowBias(4)]), **kwargs)
    assert_same_text(tiny_llama, ours, theirs, inputs["input_ids"].shape[1], inputs["attention_mask"])


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["lossless", "quantized"])
def test_rows_end_at_their_own_eos(tiny_llama: PreTrainedModel, mode: str) -> None:
    """Rows that end early are padded, the others go on; 16 bits make `quantized` comparable with generate."""
    method = QuantizedVerification(bits=16 if mode == "quantized" else 8, mode=mode)  # type: ignore[arg-type]
    inputs = padded(ROWS)
    free = tiny_llama.generate(**inputs, max_new_tokens=20, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    eos = [int(free[0, 3]), int(free[2, 9])]
    kwargs = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": eos, "pad_token_id": 1}
    ours, theirs = (
        tiny_llama.generate(**inputs, custom_generate=method, **kwargs),
        tiny_llama.generate(**inputs, **kwargs),
    )
    assert_same_text(tiny_llama, ours, theirs, inputs["input_ids"].shape[1], inputs["attention_mask"])
    assert ours.shape == theirs.shape


class StopAfterToken(StoppingCriteria):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] == self.token


def test_stopping_criteria_are_asked_after_every_token(tiny_llama: PreTrainedModel) -> None:
    inputs = padded(ROWS)
    free = tiny_llama.generate(**inputs, max_new_tokens=20, do_sample=False)
    criteria = StoppingCriteriaList([StopAfterToken(int(free[1, -12]))])
    # with an EOS token, plain generate pads rows that the criteria ended; without, it lets them go on
    kwargs = {"max_new_tokens": 20, "do_sample": False, "stopping_criteria": criteria, "eos_token_id": 96}
    ours = tiny_llama.generate(**inputs, custom_generate=QuantizedVerification(mode="lossless"), **kwargs)
    assert_same_text(
        tiny_llama,
        ours,
        tiny_llama.generate(**inputs, **kwargs),
        inputs["input_ids"].shape[1],
        inputs["attention_mask"],
    )


def test_max_time_ends_the_call(tiny_llama: PreTrainedModel) -> None:
    out = tiny_llama.generate(
        torch.tensor([[5, 6]]),
        custom_generate=QuantizedVerification(),
        max_new_tokens=400,
        max_time=0.0,
        do_sample=False,
    )
    assert out.shape[1] < 60


def test_a_row_ends_where_the_context_does(tiny_llama: PreTrainedModel) -> None:
    out = tiny_llama.generate(
        torch.tensor([[5, 6] * 250]), custom_generate=QuantizedVerification(), max_new_tokens=100, do_sample=False
    )
    assert out.shape[1] == 512


# -- sampling (the distribution itself is tested in test_sampling.py) -------------------------------------------------


@pytest.mark.parametrize("mode", ["lossless", "quantized"])
def test_a_seed_gives_the_same_text(tiny_llama: PreTrainedModel, mode: str) -> None:
    method = QuantizedVerification(mode=mode)  # type: ignore[arg-type]

    def sample(seed: int) -> Tensor:
        set_seed(seed)
        return tiny_llama.generate(**padded(ROWS), custom_generate=method, max_new_tokens=12, do_sample=True, top_k=0)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_num_return_sequences_and_config_defaults() -> None:
    model = tiny("llama")
    model.generation_config.update(do_sample=True, temperature=1.5, max_new_tokens=5)
    out = model.generate(torch.tensor([[5, 6, 7]]), custom_generate=QuantizedVerification(), num_return_sequences=6)
    assert out.shape == (6, 8)
    assert len({tuple(row) for row in out.tolist()}) > 1


# -- streaming -------------------------------------------------------------------------------------------------------


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.events.append(value.tolist())

    def end(self) -> None:
        self.events.append("end")


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("mode", ["lossless", "quantized"])
def test_streamer_receives_what_generate_would_put(tiny_llama: PreTrainedModel, mode: str, own: bool) -> None:
    """A batch with rows that end early; given to `generate` or to the object."""
    inputs = padded(ROWS[:2])
    plain = tiny_llama.generate(**inputs, max_new_tokens=14, do_sample=False)
    kwargs = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": [int(plain[0, -6])], "pad_token_id": 1}
    theirs, ours = Recorder(), Recorder()
    tiny_llama.generate(**inputs, streamer=theirs, **kwargs)
    bits = 16 if mode == "quantized" else 8
    method = QuantizedVerification(bits, mode, streamer=ours if own else None)  # type: ignore[arg-type]
    tiny_llama.generate(**inputs, custom_generate=method, streamer=None if own else ours, **kwargs)
    assert ours.events == theirs.events


def test_streamer_ends_when_the_call_fails(tiny_llama: PreTrainedModel) -> None:
    """A consumer of a TextIteratorStreamer must never wait for ever."""
    streamer = Recorder()
    with pytest.raises(InputError, match="num_beams is 2"):
        tiny_llama.generate(
            torch.tensor([[5]]),
            custom_generate=QuantizedVerification(),
            num_beams=2,
            streamer=streamer,
            max_new_tokens=4,
        )
    assert streamer.events[-1] == "end"


def test_text_iterator_streamer_in_a_thread(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer("One, two, three, four, one, two, three,", return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    kwargs = {"max_new_tokens": 12, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(
        target=model.generate, kwargs={**inputs, **kwargs, "custom_generate": QuantizedVerification(mode="lossless")}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert text == tokenizer.decode(plain)


# -- what is returned ------------------------------------------------------------------------------------------------


def test_scores_and_logits_are_those_of_generate(tiny_llama: PreTrainedModel) -> None:
    inputs = padded(ROWS)
    kwargs = {
        "max_new_tokens": 10,
        "do_sample": False,
        "repetition_penalty": 1.2,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    ours = tiny_llama.generate(**inputs, custom_generate=QuantizedVerification(mode="lossless"), **kwargs)
    theirs = tiny_llama.generate(**inputs, **kwargs)
    assert torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mode", ["lossless", "quantized"])
def test_statistics_add_up(tiny_llama: PreTrainedModel, mode: str) -> None:
    out = tiny_llama.generate(
        **padded(ROWS),
        custom_generate=QuantizedVerification(mode=mode, window=4),  # type: ignore[arg-type]
        max_new_tokens=30,
        do_sample=False,
        return_dict_in_generate=True,
    )
    stats = out.stats
    assert stats.new_tokens == 4 * 30
    assert 0 < stats.accepted <= stats.drafted
    assert stats.row_tokens == stats.accepted + stats.row_passes
    assert stats.acceptance_length == stats.row_tokens / stats.row_passes > 1
    assert stats.passes["prefill"] == 1
    assert (stats.passes["full"] > 0) == (mode == "lossless")
    assert stats.confirmed <= stats.reverified
    assert (stats.reverified > 0) == (mode == "lossless")
    assert sum(s for phase, s in stats.seconds.items() if phase != "total") <= stats.seconds["total"]


def test_tokens_from_drafts_are_what_prompt_lookup_wrote(tiny_llama: PreTrainedModel) -> None:
    out = tiny_llama.generate(
        **padded(ROWS),
        custom_generate=QuantizedVerification(draft_length=4),
        max_new_tokens=30,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert sum(map(sum, out.stats.from_draft)) == out.stats.accepted > 0
    for prompt, sequence, flags in zip(ROWS, out.sequences[:, -30:].tolist(), out.stats.from_draft, strict=True):
        assert len(flags) == 30
        place = 1  # the first token comes with the prompt
        while place < 30:
            lookup = PromptLookup(3)
            lookup.extend([*prompt, *sequence[:place]])
            draft = lookup.draft(min(4, 30 - place - 1))
            written = sequence[place : place + len(draft)]
            kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(draft, written, strict=True)))
            assert flags[place : place + kept + 1] == [True] * kept + [False]
            place += kept + 1


def test_tokens_from_drafts_are_those_that_the_check_confirmed(tiny_llama: PreTrainedModel) -> None:
    out = tiny_llama.generate(
        **padded(ROWS),
        custom_generate=QuantizedVerification(mode="lossless"),
        max_new_tokens=30,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert [len(row) for row in out.stats.from_draft] == [30] * len(ROWS)
    assert sum(map(sum, out.stats.from_draft)) == out.stats.confirmed > 0


def test_without_drafts_every_pass_is_one_token(tiny_llama: PreTrainedModel) -> None:
    out = tiny_llama.generate(
        torch.tensor([ROWS[0]]),
        custom_generate=QuantizedVerification(drafter="none"),
        max_new_tokens=9,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert out.stats.passes == {"prefill": 1, "low_bit": 8, "full": 0}
    assert out.stats.acceptance_length == 1.0


def test_one_object_in_two_threads(tiny_llama: PreTrainedModel) -> None:
    """Settings and weights are shared, no state of a call is."""
    method = QuantizedVerification(mode="lossless")
    found: dict[int, Tensor] = {}

    def work(index: int) -> None:
        for _ in range(3):
            found[index] = tiny_llama.generate(
                torch.tensor([ROWS[index]]), custom_generate=method, max_new_tokens=20, do_sample=False
            )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, out in found.items():
        plain = tiny_llama.generate(torch.tensor([ROWS[index]]), max_new_tokens=20, do_sample=False)
        assert_same_text(tiny_llama, out, plain, len(ROWS[index]))


# -- low-bit weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_saved_weights_give_the_same_text(tmp_path: Path, bits: int) -> None:
    for family in ("llama", "gpt2"):  # GPT-2's Conv1D is no nn.Linear: only its head could be quantised
        model = tiny(family)
        if family == "gpt2":
            with pytest.raises(InputError, match=r"no torch\.nn\.Linear"):
                LowBitModel.quantize(model)
            continue
        path = tmp_path / f"{family}.safetensors"
        LowBitModel.quantize(model, LowBitConfig(bits=bits)).save(path)  # type: ignore[arg-type]
        ids = torch.tensor([ROWS[0]])
        texts = [
            model.generate(ids, custom_generate=method, max_new_tokens=20, do_sample=False)
            for method in (QuantizedVerification(bits), QuantizedVerification(bits, weights=path))
        ]
        assert torch.equal(*texts)


def test_saved_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "llama.safetensors"
    LowBitModel.quantize(tiny("llama")).save(path)
    with pytest.raises(InputError, match="another"):
        LowBitModel.load(tiny("qwen2"), path)
    with pytest.raises(InputError, match="cannot be read"):
        LowBitModel.load(tiny("llama"), tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        LowBitModel.load(tiny("llama"), path)


def test_changed_weights_are_quantised_again() -> None:
    model = tiny("llama")
    method = QuantizedVerification()
    first = method.prepare(model)
    assert method.prepare(model) is first
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    assert method.prepare(model) is not first


def test_unlisted_architectures_run_through_their_modules() -> None:
    """Phi stands for every model with nn.Linear that the lean forward does not know."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, eos_token_id=None, pad_token_id=0, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    inputs = padded(ROWS)
    ours = model.generate(
        **inputs, custom_generate=QuantizedVerification(mode="lossless"), max_new_tokens=16, do_sample=False
    )
    theirs = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert_same_text(model, ours, theirs, inputs["input_ids"].shape[1], inputs["attention_mask"])


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 5}, r"bits is 5: use one of 16, 8, 4"),
        ({"mode": "certain"}, r"mode is 'certain': use one of 'quantized', 'lossless'"),
        ({"drafter": "eagle"}, r"drafter is 'eagle'"),
        ({"activation_bits": 4}, r"activation_bits is 4: use one of 8, 16"),
        ({"draft_length": 0}, r"draft_length is 0: give a whole number of at least 1"),
        ({"draft_length": -3}, r"draft_length is -3"),
        ({"window": 0}, r"window is 0"),
        ({"max_ngram": 0}, r"max_ngram is 0"),
        ({"outliers": -1}, r"outliers is -1"),
        ({"stop_strings": "x"}, r"stop_strings is given without a tokenizer"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantizedVerification(**arguments)


def _inputs_of_nothing() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[5, 6], [7, 8]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])}


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (lambda: {"input_ids": torch.tensor([[5]])}, {"num_beams": 3}, "num_beams is 3"),
        (_inputs_of_nothing, {}, "prompt 1 is empty"),
        (lambda: {"input_ids": torch.ones(1, 512).long()}, {}, r"512 tokens and the model's context is 512"),
        (
            lambda: {
                "input_ids": torch.ones(2, 3).long(),
                "attention_mask": torch.ones(1, 3).long() * torch.tensor([0, 1, 1]),
            },
            {},
            r"attention_mask is \[1, 3\] and input_ids is \[2, 3\]",
        ),
        (lambda: {"input_ids": torch.tensor([[5]])}, {"guidance_scale": 2.0}, "UnbatchedClassifierFreeGuidance"),
        (
            lambda: {"input_ids": torch.tensor([[5]])},
            {"return_dict_in_generate": True, "output_hidden_states": True},
            "output_hidden_states=True",
        ),
    ],
)
def test_bad_calls_are_refused(
    tiny_llama: PreTrainedModel, inputs: Callable[[], dict[str, Tensor]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny_llama.generate(
            **inputs(), custom_generate=QuantizedVerification(), **{"max_new_tokens": 4, "do_sample": False, **options}
        )


def test_stop_strings(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer("Count: one, two, three, four, five, six,", return_tensors="pt")
    method = QuantizedVerification(mode="lossless", stop_strings=["nine"], tokenizer=tokenizer)
    ours = model.generate(**inputs, custom_generate=method, max_new_tokens=24, do_sample=False)
    theirs = model.generate(**inputs, stop_strings=["nine"], tokenizer=tokenizer, max_new_tokens=24, do_sample=False)
    assert torch.equal(ours, theirs)
    assert ours.shape[1] < inputs["input_ids"].shape[1] + 24
