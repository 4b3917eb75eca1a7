"""Fusion inside `model.generate`, in every decoding mode, held against plain transformers without a cache."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from scipy import optimize
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from bench.models import first_layers, perturbed
from bench.naive import NaiveRows, naive_fusion, naive_steer
from bench.processor_modes import MODES, generated
from tests.conftest import tiny
from trimtab import InputError, LogitFusion, QuantizedVerification, Steer
from trimtab.decoding.fusion import fuse

if TYPE_CHECKING:
    from trimtab.integrations.transformers.loading import Loaded

# prompts that repeat themselves, so that prompt lookup has something to probe
ROWS = [[5, 6, 7, 8, 9, 5, 6, 7], [11, 12, 11, 12, 11], [1, 20, 21]]
NEGATIVES = [[[5, 6, 30], [40] * 7], [[11, 12]], [[20, 50, 60], [61], [3, 4, 5, 6]]]
TOLERANCE = 2e-3

Method = tuple[LogitsProcessor, NaiveRows]


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
    """Large, small base, small expert."""
    large = tiny("llama")
    base = first_layers(perturbed(large, 1, 0.5), 1)
    return large, base, perturbed(base, 2, 0.5)


def batch(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def run(large: PreTrainedModel, processor: LogitsProcessor, rows: int, options: dict[str, Any], **more: Any) -> Any:
    return generated(large, batch(ROWS[:rows]), processor, options | more, 14)


def fusion_pair(models: tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel], rows: int) -> Method:
    _, base, expert = models
    return LogitFusion(base, [expert]), naive_fusion(base, expert, batch(ROWS[:rows])["attention_mask"], None)


def steer_pair(models: tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel], rows: int) -> Method:
    large, base, _ = models
    negatives = NEGATIVES[:rows]
    return (
        Steer(base, 0.3, 0.5, negatives, expert=large),
        naive_steer(base, large, batch(ROWS[:rows])["attention_mask"], negatives, 0.3, 0.5),
    )


def both_scores(first: Any, second: Any) -> tuple[list[Tensor], list[Tensor]]:
    return [x.clamp(min=-50) for x in first.scores], [x.clamp(min=-50) for x in second.scores]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", [fusion_pair, steer_pair], ids=["fusion", "steer"])
def test_every_mode_is_the_reference(models: Any, pair: Any, mode: str) -> None:
    """The same tokens, in a first and in a second call of one object."""
    rows, options = MODES[mode]
    ours, theirs = pair(models, rows)
    expected = run(models[0], theirs, rows, options)
    first, second = run(models[0], ours, rows, options), run(models[0], ours, rows, options)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)


@pytest.mark.parametrize("pair", [fusion_pair, steer_pair], ids=["fusion", "steer"])
def test_scores_are_the_reference(models: Any, pair: Any) -> None:
    """Probabilities too, not only which token is best."""
    ours, theirs = pair(models, 3)
    more = {"return_dict_in_generate": True, "output_scores": True}
    first, second = (run(models[0], each, 3, {"do_sample": False}, **more) for each in (ours, theirs))
    for a, b in zip(*both_scores(first, second), strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=1e-3)


@pytest.mark.slow
def test_one_object_in_calls_of_any_kind(models: Any) -> None:
    """Other prompts, other batch sizes, other modes one after another; a longer prompt that begins as the last one."""
    large, base, expert = models
    ours = LogitFusion(base, [expert])
    for mode in ("greedy batch", "beams", "prompt lookup", "greedy", "sampling batch"):
        rows, options = MODES[mode]
        theirs = naive_fusion(base, expert, batch(ROWS[:rows])["attention_mask"], None)
        assert torch.equal(run(large, ours, rows, options), run(large, theirs, rows, options))
    text = torch.tensor([ROWS[0]])
    for _ in range(3):
        theirs = naive_fusion(base, expert, torch.ones_like(text), None)
        kwargs: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
        out = large.generate(text, logits_processor=[ours], **kwargs)
        assert torch.equal(out, large.generate(text, logits_processor=[theirs], **kwargs))
        text = torch.cat([out, torch.tensor([[7, 8]])], 1)


def test_threads_share_one_object(models: Any) -> None:
    large, base, expert = models
    ours = LogitFusion(base, [expert])
    expected = [
        large.generate(
            torch.tensor([row]), logits_processor=[LogitFusion(base, [expert])], max_new_tokens=16, do_sample=False
        )
        for row in ROWS
    ]
    found: dict[int, Tensor] = {}

    def work(index: int) -> None:
        found[index] = large.generate(
            torch.tensor([ROWS[index]]), logits_processor=[ours], max_new_tokens=16, do_sample=False
        )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], expected[index]) for index in range(3))


def test_inside_quantized_verification(models: Any) -> None:
    """Rows that advance unevenly are filled at the start, which is not the prompt's own padding."""
    large, base, expert = models
    plain = run(large, LogitFusion(base, [expert]), 3, {"do_sample": False})
    drafted = run(
        large, LogitFusion(base, [expert]), 3, {"do_sample": False, "custom_generate": QuantizedVerification(16)}
    )
    assert torch.equal(plain, drafted)


@pytest.mark.parametrize(
    ("rows", "options"), [(3, {"do_sample": False}), (1, {"num_beams": 4, "do_sample": False})], ids=["greedy", "beams"]
)
def test_one_token_a_row_and_step_is_fed(models: Any, rows: int, options: dict[str, Any]) -> None:
    ours = LogitFusion(models[1], [models[2]])
    run(models[0], ours, rows, options)
    width = options.get("num_beams", 1) * rows
    for model in (ours._base, *ours._experts):
        # the prompts once, also for beams; 14 tokens are chosen with 13 more passes
        assert model.forwarded <= sum(map(len, ROWS[:rows])) + 13 * width
        assert options.get("num_beams") or model.forwarded == sum(map(len, ROWS[:rows])) + 13 * width


# -- trace -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["greedy batch", "beams batch", "prompt lookup", "assisted"])
def test_trace_is_of_the_returned_text(models: Any, mode: str) -> None:
    rows, options = MODES[mode]
    large, base, expert = models
    ours = LogitFusion(base, [expert])
    inputs = batch(ROWS[:rows])
    out = run(large, ours, rows, options)
    trace = ours.trace(out, inputs["attention_mask"])
    start = inputs["input_ids"].shape[1]
    assert trace.alpha.shape == (*out.shape, 1)
    assert trace.alpha[:, :start].isnan().all()
    assert not trace.alpha[:, start:].isnan().any()
    for row in range(rows):
        text = [*ROWS[row], *out[row, start : start + 6].tolist()]
        with torch.no_grad():
            p, q, e = (m(torch.tensor([text])).logits[:, -1].double() for m in (large, base, expert))
        step = fuse(p.float(), q.float(), e[None].float())
        torch.testing.assert_close(trace.divergence[row, start + 6], step.divergence[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(trace.target[row, start + 6], step.target[0], atol=2e-3, rtol=2e-3)


# -- vocabularies, padding, refusals -----------------------------------------------------------------------------------


def test_padded_vocabulary_is_cut_to_what_all_have(models: Any) -> None:
    large, base, expert = models
    wide = tiny("llama")
    wide.resize_token_embeddings(103)
    out = wide.generate(
        torch.tensor([ROWS[0]]),
        logits_processor=[LogitFusion(base, [expert])],
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert out.scores[0].shape == (1, 103)
    assert (out.scores[0][:, 97:] == -torch.inf).all()
    torch.testing.assert_close(out.scores[0].exp().sum(), torch.tensor(1.0))
    narrow = LogitFusion(wide, [wide])  # small models wider than the large one
    assert large.generate(torch.tensor([ROWS[0]]), logits_processor=[narrow], max_new_tokens=4).shape == (1, 12)


def test_outside_generate_a_run_of_pad_is_padding(models: Any) -> None:
    _, base, expert = models
    inputs = batch(ROWS)
    scores = torch.randn(3, 97)
    inferred = LogitFusion(base, [expert])(inputs["input_ids"], scores)
    told = LogitFusion(base, [expert], attention_mask=inputs["attention_mask"])(inputs["input_ids"], scores)
    assert torch.equal(inferred, told)


def test_pad_that_is_bos_is_warned_about() -> None:
    base = tiny("llama")
    base.generation_config.pad_token_id = base.generation_config.bos_token_id = 1
    ids = torch.tensor([[1, 1, 1, 5], [1, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    scores = torch.randn(2, 97)
    with pytest.warns(UserWarning, match="both padding and BOS"):
        guessed = LogitFusion(base, [base], 1.0)(ids, scores)
    assert torch.equal(guessed, LogitFusion(base, [base], 1.0, attention_mask=mask)(ids, scores))


def test_weights_that_changed_are_noticed(models: Any) -> None:
    _, base, _ = models
    expert = perturbed(base, 4, 0.2)
    ours = LogitFusion(base, [expert], 1.0)
    ids, scores = torch.tensor([ROWS[0]]), torch.randn(1, 97)
    before = ours(ids[:, :-2], scores)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.mul_(1.1)
    after = ours(ids[:, :-2], scores)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, LogitFusion(base, [expert], 1.0)(ids[:, :-2], scores), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"experts": []}, "experts is empty"),
        ({"alpha": -0.5}, r"alpha is -0\.5"),
        ({"alpha": "auto"}, "alpha is 'auto'"),
        ({"alpha_max": 0.0}, r"alpha_max is 0\.0"),
        ({"active": "some"}, "active is 'some'"),
        ({"attention_mask": torch.ones(4)}, r"attention_mask has shape \[4\]"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(models: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LogitFusion(**({"base": models[1], "experts": [models[2]]} | kwargs))


def test_models_that_do_not_fit_are_refused(models: Any) -> None:
    large, base, expert = models
    other = tiny("llama")
    other.resize_token_embeddings(97 + 600)
    with pytest.raises(InputError, match=r"experts\[0\] has 697"):
        LogitFusion(base, [other])
    with pytest.raises(InputError, match="the large model has 697"):
        other.generate(torch.tensor([ROWS[0]]), logits_processor=[LogitFusion(base, [expert])], max_new_tokens=2)
    elsewhere = first_layers(large, 1).to("meta")
    with pytest.raises(InputError, match=r"experts\[0\] is on meta and base is on cpu"):
        LogitFusion(base, [elsewhere])
    with pytest.raises(InputError, match="base is on meta and the large model's scores are on cpu"):
        LogitFusion(elsewhere, [elsewhere])(torch.tensor([ROWS[0]]), torch.randn(1, 97))
    with pytest.raises(InputError, match="give a list"):
        LogitFusion(base, expert)  # type: ignore[arg-type]


# -- a real model ------------------------------------------------------------------------------------------------------

PROMPTS = [
    "The sea is",
    "Once upon a time, in a small town by the river,",
    "List three rivers in Europe.",
    "def add(a, b):",
    "The capital of France is Paris. The capital of Italy is",
    "Water boils at",
]


def along(model: PreTrainedModel, context: list[int], new: list[int]) -> Tensor:
    """Log-probabilities of each of the new tokens' positions, one pass without a cache, float64."""
    with torch.no_grad():
        logits = model(torch.tensor([context + new]), use_cache=False).logits[0, len(context) - 1 : -1]
    return logits.double().log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fusion", "steer"])
def test_real_text_is_the_reference(smollm2: Loaded, method: str) -> None:
    """Six ragged prompts, 32 greedy tokens: each is the best of the reference after the tokens before it, or a tie."""
    large, tokenizer = smollm2
    base = first_layers(large, 10)
    expert = perturbed(base, 0, 0.05)
    tokenizer.padding_side = "left"
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    negatives = [[tokenizer(text)["input_ids"] for text in PROMPTS[row % 3 : row % 3 + 2]] for row in range(6)]
    ours: LogitsProcessor = (
        LogitFusion(base, [expert]) if method == "fusion" else Steer(base, 0.2, 0.6, negatives, expert=large)
    )
    out = large.generate(
        **inputs,
        logits_processor=[ours],
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=[],
        return_dict_in_generate=True,
        output_scores=True,
    )
    start = inputs["input_ids"].shape[1]
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        prompt, new = inputs["input_ids"][row][mask].tolist(), out.sequences[row, start:].tolist()
        assert len(new) == 32
        p, q = along(large, prompt, new), along(base, prompt, new)
        if method == "fusion":
            e = along(expert, prompt, new)
            alpha = torch.tensor([best_alpha(*step) for step in zip(p, q, e, strict=True)])
            assert (alpha > 0).all()
            expected = (p + alpha[:, None] * (e - q)).log_softmax(-1)
        else:
            negative = torch.stack([along(large, context, new) for context in negatives[row]]).mean(0)
            expected = (1.2 * p - 0.2 * q - 0.6 * negative).log_softmax(-1)
        got = torch.stack([scores[row] for scores in out.scores]).double()
        likely = expected > -20
        torch.testing.assert_close(got[likely], expected[likely], atol=5e-3, rtol=0)
        chosen = expected.gather(1, torch.tensor(new)[:, None])[:, 0]
        assert (expected.amax(-1) - chosen < 1e-3).all()


def best_alpha(p: Tensor, q: Tensor, e: Tensor) -> float:
    """By scipy, with the divergences' closed forms; tests/decoding holds these to the definition."""
    target = torch.stack([(e.exp() * (e - q)).sum(), (q.exp() * (q - e)).sum()])
    push, mean = e - q, (p.exp() * (e - q)).sum()

    def objective(alpha: float) -> float:
        weight = (p + alpha * push).exp()
        log_z = weight.sum().log()
        reached = torch.stack([alpha * (weight @ push) / weight.sum() - log_z, log_z - alpha * mean])
        return float((reached - target).square().sum())

    return float(optimize.minimize_scalar(objective, bounds=(0, 2), method="bounded", options={"xatol": 1e-4}).x)
