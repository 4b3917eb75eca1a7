"""Entropy-adaptive decoding inside `model.generate`, held against two models in plain transformers without caches."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteriaList,
    set_seed,
)

from bench.models import first_layers
from tests.conftest import SIZES, tiny
from tests.decoding.test_entropy_gate import exact_entropy
from tests.integrations.transformers.test_quantized_verification import (
    ROWS,
    Recorder,
    RowBias,
    StopAfterToken,
    padded,
)
from trimtab import EntropyAdaptive, InputError, LowBitModel
from trimtab.decoding.entropy_gate import GateSettings
from trimtab.integrations.transformers import runner
from trimtab.integrations.transformers.entropy_adaptive_stats import SPEAKERS, EntropyAdaptiveStats, RowStats, Speaker

if TYPE_CHECKING:
    from trimtab.integrations.transformers.loading import Loaded

pytestmark = pytest.mark.usefixtures("one_thread")
HUGE = 1e9


def noisy(model: PreTrainedModel, scale: float = 0.4) -> PreTrainedModel:
    """Another model of the same shape, related enough that both make sense of the same text."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() > 1:
                parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def pair(tiny_llama: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny_llama, noisy(tiny_llama)


@torch.no_grad()
def naive(
    large: PreTrainedModel, small: PreTrainedModel, prompt: Sequence[int], steps: int, gate: GateSettings
) -> tuple[list[int], list[Speaker], list[float]]:
    """Greedy entropy-adaptive decoding as one would write it down: each step reads the whole text again."""
    lower = gate.threshold if gate.lower_threshold is None else gate.lower_threshold
    tokens: list[int] = []
    speakers: list[Speaker] = []
    entropies: list[float] = []
    is_large, stay = gate.start_large, 0
    for _ in range(steps):
        model = large if is_large else small
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[:, -1].float()
        tokens.append(int(logits.argmax()))
        speakers.append("large" if is_large else "small")
        entropies.append(float(exact_entropy(logits)[0]))
        stay += 1
        mean = float(np.mean(entropies[-gate.window :]))
        wants_large = mean > (lower if is_large else gate.threshold)
        if wants_large != is_large and stay >= (gate.min_stay or gate.window):
            is_large, stay = wants_large, 0
    return tokens, speakers, entropies


def middle(large: PreTrainedModel, small: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> float:
    """A threshold that both models' texts cross: the median entropy of the small one's."""
    found = [naive(large, small, prompt, 12, GateSettings(HUGE))[2] for prompt in prompts]
    return float(np.median(np.concatenate(found)))


def run(
    large: PreTrainedModel, method: EntropyAdaptive, rows: list[list[int]], steps: int, side: str = "left", **more: Any
) -> tuple[Tensor, EntropyAdaptiveStats]:
    inputs = padded(rows, side)
    options = {"do_sample": False, **more}
    out = large.generate(
        **inputs, custom_generate=method, max_new_tokens=steps, return_dict_in_generate=True, **options
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], out.stats


# -- against the naive reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_the_naive_loop_row_by_row(tiny_model: PreTrainedModel, side: str) -> None:
    """Tokens, models and entropies, in every family; rows switch by themselves."""
    small = noisy(tiny_model)
    gate = GateSettings(middle(tiny_model, small, ROWS), window=3)
    ours, stats = run(tiny_model, EntropyAdaptive(small, gate.threshold, window=3), ROWS, 24, side)
    for row, prompt in enumerate(ROWS):
        tokens, speakers, entropies = naive(tiny_model, small, prompt, 24, gate)
        assert ours[row].tolist() == tokens
        assert stats.rows[row].speakers == speakers
        np.testing.assert_allclose(stats.rows[row].entropies, entropies, atol=2e-3)
    assert stats.switches >= 3
    assert len({tuple(row.speakers) for row in stats.rows}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 1, "min_stay": 1},
        {"window": 1, "min_stay": 4},
        {"window": 4, "min_stay": 1},
        {"window": 2, "lower": 0.5},
        {"window": 2, "start": "large"},
    ],
    ids=str,
)
def test_every_setting_of_the_gate(pair: tuple[PreTrainedModel, PreTrainedModel], settings: dict[str, Any]) -> None:
    large, small = pair
    threshold = middle(large, small, ROWS)
    options = dict(settings)
    lower = options.pop("lower", None)
    options["lower_threshold"] = None if lower is None else lower * threshold
    start_large = options.get("start") == "large"
    gate = GateSettings(
        threshold, options["window"], options.get("min_stay"), options["lower_threshold"], start_large=start_large
    )
    ours, stats = run(large, EntropyAdaptive(small, threshold, **options), ROWS, 30)
    for row, prompt in enumerate(ROWS):
        tokens, speakers, _ = naive(large, small, prompt, 30, gate)
        assert ours[row].tolist() == tokens
        assert stats.rows[row].speakers == speakers
    assert stats.switches > 0


def test_catch_up_in_chunks(pair: tuple[PreTrainedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap longer than one prefill chunk."""
    large, small = pair
    monkeypatch.setattr(runner, "PREFILL_CHUNK", 4)
    gate = GateSettings(middle(large, small, ROWS), window=2, min_stay=6)
    ours, stats = run(large, EntropyAdaptive(small, gate.threshold, window=2, min_stay=6), ROWS, 30)
    for row, prompt in enumerate(ROWS):
        assert ours[row].tolist() == naive(large, small, prompt, 30, gate)[0]
    assert stats.catch_up_passes["small"] + stats.catch_up_passes["large"] > 0


@pytest.mark.slow
def test_a_real_batch_is_the_naive_loop(smollm2: Loaded) -> None:
    """SmolLM2-135M and its first 15 layers with the head put on: six ragged prompts, 32 tokens."""
    large, tokenizer = smollm2
    small = first_layers(large, 15)
    prompts = [
        tokenizer(text).input_ids
        for text in (
            "The capital of France is",
            "Once upon a time, in a small town by the river, there lived a clockmaker who",
            "def fibonacci(n):",
            "1, 2, 3, 4, 5, 6,",
            "Write a short letter to a landlord about a broken heater.\n\nDear",
            "Water boils at",
        )
    ]
    _, alone = run(large, EntropyAdaptive(small, HUGE), prompts, 12)
    threshold = float(np.median([bits for row in alone.rows for bits in row.entropies]))
    ours, stats = run(large, EntropyAdaptive(small, threshold), prompts, 32)
    gate = GateSettings(threshold)
    for row, prompt in enumerate(prompts):
        tokens, speakers, entropies = naive(large, small, prompt, 32, gate)
        assert stats.rows[row].speakers == speakers
        assert ours[row].tolist() == tokens
        np.testing.assert_allclose(stats.rows[row].entropies, entropies, atol=2e-3)
    assert stats.switches >= 3
    assert 0 < stats.large_share < 1


# -- the ends of the scale ---------------------------------------------------------------------------------------------


def test_extreme_thresholds_are_the_two_models(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    large, small = pair
    inputs = padded(ROWS)
    width = inputs["input_ids"].shape[1]
    for threshold, start, model in ((0.0, "large", large), (HUGE, "small", small)):
        ours, stats = run(large, EntropyAdaptive(small, threshold, start=start), ROWS, 20)
        assert torch.equal(ours, model.generate(**inputs, max_new_tokens=20, do_sample=False)[:, width:])
        other = "small" if model is large else "large"
        assert stats.passes[other] == stats.forward_tokens[other] == 0
        assert stats.large_share == (model is large)
        assert stats.cost == (1.0 if model is large else stats.small_cost)


def test_threshold_zero_hands_over_after_the_minimum_stay(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """From the small start: one token of the small model, and the large one's own text after it."""
    large, small = pair
    ours, stats = run(large, EntropyAdaptive(small, 0.0, window=1), [ROWS[0]], 16)
    first = int(small(torch.tensor([ROWS[0]])).logits[0, -1].argmax())
    rest = large.generate(torch.tensor([[*ROWS[0], first]]), max_new_tokens=15, do_sample=False)
    assert ours[0].tolist() == [first, *rest[0, len(ROWS[0]) + 1 :].tolist()]
    assert stats.tokens == {"small": 1, "large": 15}


def test_precision_switching(tiny_llama: PreTrainedModel) -> None:
    """Two precisions over one state: the ends of the scale, and in between no catch-up at all."""
    inputs = padded(ROWS)
    full = tiny_llama.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    ours, _ = run(tiny_llama, EntropyAdaptive("low-bit", 0.0, start="large"), ROWS, 16)
    assert torch.equal(ours, full)
    low = LowBitModel.quantize(tiny_llama)
    ours, stats = run(tiny_llama, EntropyAdaptive("low-bit", HUGE), ROWS, 16)
    for row, prompt in enumerate(ROWS):
        text = list(prompt)
        for _ in range(16):
            alone = runner.Runner(low.forward, runner.SequenceState(1), tiny_llama.device)
            text.append(int(alone.prefill([text]).argmax()))
        assert ours[row].tolist() == text[len(prompt) :]
    assert 0 < stats.small_cost < 1
    threshold = float(np.median([bits for row in stats.rows for bits in row.entropies]))
    _, stats = run(tiny_llama, EntropyAdaptive("low-bit", threshold, window=2), ROWS, 30)
    assert stats.switches > 0
    assert stats.catch_up_passes == stats.catch_up_tokens == {"small": 0, "large": 0}
    assert sum(stats.forward_tokens.values()) == sum(map(len, ROWS)) + 4 * 29


def test_precision_switching_keeps_one_state(tiny_llama: PreTrainedModel) -> None:
    """Mid-scale, against a loop over one row's own state that switches forwards token by token."""
    low = LowBitModel.quantize(tiny_llama)
    _, alone = run(tiny_llama, EntropyAdaptive("low-bit", HUGE), ROWS, 16)
    threshold = float(np.median([bits for row in alone.rows for bits in row.entropies]))
    ours, stats = run(tiny_llama, EntropyAdaptive("low-bit", threshold, window=2), ROWS, 24)
    for row, prompt in enumerate(ROWS):
        state = runner.SequenceState(1)
        forwards = {"small": low.forward, "large": runner.forward_of(tiny_llama)}
        fed, tokens = list(prompt), []
        for speaker in stats.rows[row].speakers:
            logits = runner.Runner(forwards[speaker], state, tiny_llama.device).prefill([fed])
            fed = [int(logits.argmax())]
            tokens += fed
        assert ours[row].tolist() == tokens


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_add_up(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    large, _ = pair
    small = first_layers(large, 1)
    threshold = middle(large, small, ROWS)
    _, stats = run(large, EntropyAdaptive(small, threshold, window=2), ROWS, 30)
    assert stats.new_tokens == sum(stats.tokens.values()) == 4 * 30
    for row, prompt in zip(stats.rows, ROWS, strict=True):
        assert len(row.trace) == 30
        for speaker in SPEAKERS:
            used = row.tokens[speaker] > 0
            fed = used * len(prompt) + row.tokens[speaker] + row.catch_up_tokens[speaker]
            # the first token follows from the prompt alone
            assert row.forward_tokens[speaker] == fed - (row.speakers[0] == speaker)
        arrivals = {speaker: list(zip(row.speakers, row.speakers[1:], strict=False)) for speaker in SPEAKERS}
        for speaker in SPEAKERS:
            came = sum(a != speaker == b for a, b in arrivals[speaker])
            assert row.catch_up_passes[speaker] == came
        assert row.switches == sum(row.catch_up_passes.values())
    assert stats.cost == pytest.approx(stats.large_share + (1 - stats.large_share) * stats.small_cost)
    assert stats.small_cost == sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in large.parameters())
    assert set(stats.seconds) == {"small", "large", "sample", "total"}
    assert sum(s for phase, s in stats.seconds.items() if phase != "total") <= stats.seconds["total"]
    assert stats.as_dict()["tokens"] == stats.tokens


def test_the_papers_cost() -> None:
    """The two savings that the paper prints: 43% large tokens of 3B/11B, 25% of 1.5B/14B."""
    for share, ratio, cost in ((43, 3 / 11, 0.585), (25, 1.5 / 14, 0.33)):
        rows = [RowStats(speakers=["large"] * share + ["small"] * (100 - share))]
        assert EntropyAdaptiveStats(rows, ratio).cost == pytest.approx(cost, abs=0.005)


def test_no_pass_of_a_model_that_no_row_wants(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """One row: a pass a token. A batch: none in a step without rows, two where some rows catch up and others do not."""
    large, small = pair
    method = EntropyAdaptive(small, middle(large, small, ROWS), window=2)
    _, alone = run(large, method, ROWS[:1], 30)
    assert alone.passes == alone.tokens
    assert min(alone.passes.values()) > 0
    _, stats = run(large, method, ROWS, 30)
    for speaker in SPEAKERS:
        steps = {step for row in stats.rows for step, name in enumerate(row.speakers) if name == speaker}
        assert len(steps) <= stats.passes[speaker] <= len(steps) + stats.catch_up_passes[speaker]


# -- what plain generate does too --------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_text(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    large, small = pair
    method = EntropyAdaptive(small, middle(large, small, ROWS), window=2)

    def sample(seed: int) -> tuple[list[list[int]], list[RowStats]]:
        set_seed(seed)
        tokens, stats = run(large, method, ROWS, 16, do_sample=True, temperature=1.3, top_k=20)
        return tokens.tolist(), stats.rows

    assert sample(1) == sample(1)
    assert sample(1)[0] != sample(2)[0]


def test_entropy_is_measured_before_temperature_and_processors(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    large, small = pair
    _, plain = run(large, EntropyAdaptive(small, HUGE), [ROWS[0]], 1)
    _, bent = run(
        large, EntropyAdaptive(small, HUGE), [ROWS[0]], 1,
        do_sample=True, temperature=3.0, top_k=2, repetition_penalty=5.0,
    )  # fmt: skip
    assert plain.rows[0].entropies == bent.rows[0].entropies


def test_sampled_tokens_follow_the_active_models_distribution(
    pair: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    """4,000 first tokens of each model: chi-square at 1e-3 in two comparisons."""
    from scipy import stats as tests

    large, small = pair
    for start, model in (("small", small), ("large", large)):
        set_seed(0)
        out = large.generate(
            torch.tensor([ROWS[0]]), custom_generate=EntropyAdaptive(small, 1.0, start=start), max_new_tokens=1,
            do_sample=True, temperature=2.0, top_k=6, num_return_sequences=4_000,
        )  # fmt: skip
        logits = model(torch.tensor([ROWS[0]])).logits[0, -1].detach().double() / 2
        top = logits.topk(6)
        counts = out[:, -1].bincount(minlength=97)
        assert counts[top.indices].sum() == 4_000
        expected = 4_000 * top.values.softmax(-1)
        kept = expected > 5
        p = tests.chisquare(
            counts[top.indices][kept].double() * expected[kept].sum() / counts[top.indices][kept].sum(), expected[kept]
        ).pvalue
        assert p > 1e-3 / 2


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [6, 7]]},
        {"logits_processor": LogitsProcessorList([RowBias(4)])},
        {"eos_token_id": [5, 30, 41, 60, 77], "pad_token_id": 1},
        {"stopping_criteria": StoppingCriteriaList([StopAfterToken(30)]), "eos_token_id": 96},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize(("threshold", "start"), [(0.0, "large"), (HUGE, "small")])
def test_options_act_as_in_generate(
    pair: tuple[PreTrainedModel, PreTrainedModel], threshold: float, start: Speaker, options: dict[str, Any]
) -> None:
    """Processors, EOS and stopping criteria where the result is one model's own."""
    large, small = pair
    inputs = padded(ROWS)
    kwargs = {"max_new_tokens": 20, "do_sample": False, **options}
    ours = large.generate(**inputs, custom_generate=EntropyAdaptive(small, threshold, start=start), **kwargs)
    theirs = (large if start == "large" else small).generate(**inputs, **kwargs)
    assert torch.equal(ours, theirs)


def test_rows_that_end_early_leave_the_others_alone(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    large, small = pair
    gate = GateSettings(middle(large, small, ROWS), window=2)
    texts = [naive(large, small, prompt, 24, gate)[0] for prompt in ROWS]
    eos = [texts[0][3], texts[2][9]]
    ours, stats = run(
        large, EntropyAdaptive(small, gate.threshold, window=2), ROWS, 24, eos_token_id=eos, pad_token_id=1
    )
    ends = [next((step + 1 for step, token in enumerate(text) if token in eos), 24) for text in texts]
    assert len(set(ends)) > 1
    for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
        assert ours[row].tolist() == text[:end] + [1] * (ours.shape[1] - end)
        assert len(stats.rows[row].trace) == end


@pytest.mark.parametrize("own", [False, True])
def test_streamer_receives_what_generate_would_put(pair: tuple[PreTrainedModel, PreTrainedModel], own: bool) -> None:
    large, small = pair
    inputs = padded(ROWS[:2])
    theirs, ours = Recorder(), Recorder()
    large.generate(**inputs, streamer=theirs, max_new_tokens=8, do_sample=False)
    method = EntropyAdaptive(small, 0.0, start="large", streamer=ours if own else None)
    large.generate(**inputs, custom_generate=method, streamer=None if own else ours, max_new_tokens=8, do_sample=False)
    assert ours.events == theirs.events


def test_num_return_sequences_scores_and_plain_output(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    large, small = pair
    method = EntropyAdaptive(small, 0.0, start="large")
    ids = torch.tensor([[5, 6, 7]])
    out = large.generate(ids, custom_generate=method, num_return_sequences=6, do_sample=True, max_new_tokens=5)
    assert out.shape == (6, 8)
    assert len({tuple(row) for row in out.tolist()}) > 1
    kwargs = {
        "max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.2, "return_dict_in_generate": True,
        "output_scores": True, "output_logits": True,
    }  # fmt: skip
    inputs = padded(ROWS)
    ours, theirs = (
        large.generate(**inputs, custom_generate=method, **kwargs),
        large.generate(**inputs, **kwargs),
    )
    assert torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_one_object_in_other_calls_batches_and_threads(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    large, small = pair
    gate = GateSettings(middle(large, small, ROWS), window=2)
    method = EntropyAdaptive(small, gate.threshold, window=2)
    expected = [naive(large, small, prompt, 16, gate)[0] for prompt in ROWS]
    first, _ = run(large, method, ROWS, 16)
    again, _ = run(large, method, ROWS[:2], 16)
    assert first.tolist() == expected
    assert again.tolist() == expected[:2]
    found: dict[int, list[int]] = {}

    def work(row: int) -> None:
        for _ in range(3):
            found[row] = run(large, method, [ROWS[row]], 16)[0][0].tolist()

    threads = [threading.Thread(target=work, args=(row,)) for row in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {row: expected[row] for row in range(3)}


@pytest.mark.slow
def test_stop_strings(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer("Count: one, two, three, four, five, six,", return_tensors="pt")
    method = EntropyAdaptive(first_layers(model, 2), 0.0, start="large", stop_strings=["nine"], tokenizer=tokenizer)
    ours = model.generate(**inputs, custom_generate=method, max_new_tokens=24, do_sample=False)
    theirs = model.generate(**inputs, stop_strings=["nine"], tokenizer=tokenizer, max_new_tokens=24, do_sample=False)
    assert torch.equal(ours, theirs)
    assert ours.shape[1] < inputs["input_ids"].shape[1] + 24


# -- one tokenizer, two widths -----------------------------------------------------------------------------------------


def qwen(width: int, std: float = 0.2) -> PreTrainedModel:
    """A tiny Qwen2 whose ids beyond 97 are padding of its head, with logits that would win if they were let."""
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if k != "head_dim"} | {"vocab_size": width, "hidden_size": 128}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    with torch.no_grad():
        model.lm_head.weight[97:] *= 10
    return model


@pytest.mark.parametrize(("wide", "narrow"), [(128, 97), (97, 128)])
def test_widths_that_differ_by_padding(wide: int, narrow: int) -> None:
    """Either model the wider one; entropy and choice are over the ids of both."""
    large, small = qwen(wide), qwen(narrow, std=0.25)
    options = {"window": 1, "min_stay": 2}
    ours, stats = run(large, EntropyAdaptive(small, 1.0, **options), ROWS, 16)
    assert stats.switches > 0
    for row, prompt in enumerate(ROWS):
        for step, (bits, speaker) in enumerate(stats.rows[row].trace):
            model = large if speaker == "large" else small
            text = torch.tensor([[*prompt, *ours[row, :step].tolist()]])
            with torch.no_grad():
                logits = model(text, use_cache=False).logits[:, -1, :97]
            assert int(ours[row, step]) == int(logits.argmax())
            assert bits == pytest.approx(float(exact_entropy(logits)[0]), abs=2e-3)


# -- calibration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large_share", [0.25, 0.6])
def test_calibration_finds_the_share(pair: tuple[PreTrainedModel, PreTrainedModel], large_share: float) -> None:
    large, small = pair
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 97, (3 + index % 5,), generator=generator).tolist() for index in range(20)]
    found = EntropyAdaptive.calibrate(large, small, prompts, large_share, max_new_tokens=32, window=3, tolerance=0.03)
    assert abs(found.large_share - large_share) <= 0.03
    assert len(found.frontier) <= 10
    thresholds = [point.threshold for point in found.frontier]
    assert thresholds == sorted(thresholds)
    assert all(point.tokens == 20 * 32 for point in found.frontier)
    tokens = {"small": 0, "large": 0}
    for begin in range(0, 20, 4):
        _, stats = run(large, EntropyAdaptive(small, found.threshold, window=3), prompts[begin : begin + 4], 32)
        tokens = {name: tokens[name] + stats.tokens[name] for name in tokens}
    # other batches, another order of additions: a tie here and there
    assert tokens["large"] / sum(tokens.values()) == pytest.approx(found.large_share, abs=0.02)


def test_calibration_of_precision_switching(tiny_llama: PreTrainedModel) -> None:
    found = EntropyAdaptive.calibrate(tiny_llama, "low-bit", ROWS, 0.5, max_new_tokens=24, window=1, tolerance=0.1)
    assert abs(found.large_share - 0.5) <= 0.1


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -1.0}, r"threshold is -1\.0"),
        ({"window": 0}, r"window is 0"),
        ({"min_stay": 0}, r"min_stay is 0"),
        ({"lower_threshold": 2.0}, r"lower_threshold is 2 and threshold is 1"),
        ({"start": "medium"}, r"start is 'medium': use one of 'small', 'large'"),
        ({"small": "tiny"}, r"small is 'tiny': give a transformers model, or 'low-bit'"),
        ({"small": None}, r"small is None"),
        ({"stop_strings": "x"}, r"stop_strings is given without a tokenizer"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EntropyAdaptive(**{"small": "low-bit", "threshold": 1.0, **arguments})


def _other_context() -> PreTrainedModel:
    small = noisy(tiny("llama"))
    small.config.max_position_embeddings = 10
    return small


@pytest.mark.parametrize(
    ("small", "options", "message"),
    [
        (lambda: noisy(tiny("llama")), {"num_beams": 2}, "num_beams is 2"),
        (lambda: noisy(tiny("llama")), {"guidance_scale": 2.0}, "UnbatchedClassifierFreeGuidance"),
        (lambda: qwen(97 + 513), {}, "small has a vocabulary of 610 ids and the large model one of 97"),
        (lambda: tiny("llama").to("meta"), {}, "small is on meta and the large model on cpu"),
        (_other_context, {"max_new_tokens": 9}, r"small has a context of 10 tokens.* 12: lower max_new_tokens by 1"),
    ],
)
def test_bad_calls_are_refused_before_any_work(
    tiny_llama: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    small: Callable[[], PreTrainedModel],
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(runner.Runner, "extend", lambda *_: pytest.fail("a model was run"))
    streamer = Recorder()
    with pytest.raises(InputError, match=message):
        tiny_llama.generate(
            torch.tensor([[5, 6, 7]]),
            custom_generate=EntropyAdaptive(small(), 1.0),
            streamer=streamer if "num_beams" not in options else None,
            **{"max_new_tokens": 4, "do_sample": False, **options},
        )
    assert "num_beams" in options or streamer.events[-1] == "end"


def test_a_tokenizer_that_the_models_do_not_have_is_refused(
    pair: tuple[PreTrainedModel, PreTrainedModel], smollm2: Loaded
) -> None:
    large, small = pair
    with pytest.raises(InputError, match="tokenizer has 49152 ids, the small model 97"):
        run(large, EntropyAdaptive(small, 1.0, tokenizer=smollm2.tokenizer), ROWS, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [[5], []]}, "prompts is empty or has an empty prompt"),
        ({"large_share": 1.5}, r"large_share is 1\.5"),
        ({"tolerance": -0.1}, r"tolerance is -0\.1"),
        ({"max_runs": 1}, r"max_runs is 1"),
        ({"window": 0}, r"window is 0"),
        ({"batch_size": 0}, r"batch_size is 0"),
    ],
)
def test_bad_calibrations_are_refused(
    pair: tuple[PreTrainedModel, PreTrainedModel], arguments: dict[str, Any], message: str
) -> None:
    large, small = pair
    with pytest.raises(InputError, match=message):
        EntropyAdaptive.calibrate(large, small, **{"prompts": ROWS, "max_new_tokens": 4, **arguments})
