"""Data sets by a real tokenizer; most of them by the first layers of a real model, whose texts are quick and wild."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.models import first_layers
from trimtab import InputError
from trimtab.integrations.transformers.loading import Loaded
from trimtab.synthesis import Record, Settings, Synthesizer
from trimtab.synthesis.schedule import batches, torch_seed

SEEDS = [
    {"text": "The soup was cold and the waiter was colder.", "kind": "restaurant"},
    {"text": "Our room looked over the harbour.", "kind": "hotel"},
    {"text": "Two hours of shouting, and nobody said anything.", "kind": "film"},
    {"text": "The battery lasts two days.", "kind": "telephone that is also a camera"},
]
TEMPLATE = "A review of a {{ kind }}:"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def expert(smollm2: Loaded) -> PreTrainedModel:
    return first_layers(smollm2.model, 2)


@pytest.fixture(scope="module")
def base(smollm2: Loaded) -> PreTrainedModel:
    return first_layers(smollm2.model, 1)


def chosen(**given: Any) -> Settings:
    small: dict[str, Any] = {"negative_examples": 2, "max_new_tokens": 5, "batch_size": 3, "seed": 5}
    return Settings(**small | given)


def test_a_run_that_goes_on_writes_what_it_would_have_written(
    smollm2: Loaded, expert: PreTrainedModel, base: PreTrainedModel
) -> None:
    writer = Synthesizer(expert, base, smollm2.tokenizer, chosen())
    state = torch.random.get_rng_state()
    whole = list(writer.batches(SEEDS, [5, 8], template=TEMPLATE))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(batch) for batch in whole] == [3, 2, 1, 2]
    records = [record for batch in whole for record in batch]
    assert [record.index for record in records] == list(range(8))
    assert len({record.text for record in records}) > 4
    for done in (2, 3):
        before = [record for batch in whole[:done] for record in batch]
        again = Synthesizer(expert, base, smollm2.tokenizer, chosen())
        rest = list(again.batches(SEEDS, [5, 8], template=TEMPLATE, done=before))
        assert rest == whole[done:]
    other = list(Synthesizer(expert, base, smollm2.tokenizer, chosen(seed=6)).run(SEEDS, 3, template=TEMPLATE))
    assert [record.text for record in other] != [record.text for record in records[:3]]


@pytest.mark.parametrize("growth", [True, False])
def test_negatives_come_from_the_pool_before_the_batch(
    smollm2: Loaded, expert: PreTrainedModel, base: PreTrainedModel, growth: bool
) -> None:
    settings = chosen(negative_examples=4, negatives_per_row=2, pool_growth=growth, max_new_tokens=3)
    records = list(Synthesizer(expert, base, smollm2.tokenizer, settings).run(SEEDS, 9, template=TEMPLATE))
    largest = 0
    for start, end in batches([9], 3):
        known = len({record.text for record in records[:start]} - {""}) if growth else 0
        for record in records[start:end]:
            assert [len(set(positions)) for positions in record.negatives] == [4, 4]
            largest = max(largest, *map(max, record.negatives))
            assert largest < len(SEEDS) + known
            assert record.prompt == f"A review of a {SEEDS[record.seed]['kind']}:"
            assert record.fields == {"kind": SEEDS[record.seed]["kind"]}
    assert (largest >= len(SEEDS)) == growth
    assert sorted(record.seed for record in records[:4]) == [0, 1, 2, 3]


def test_texts_of_the_reference_stay_out_of_the_pool(
    smollm2: Loaded, expert: PreTrainedModel, base: PreTrainedModel
) -> None:
    settings = chosen(max_new_tokens=4, negative_examples=4)
    first = list(Synthesizer(expert, base, smollm2.tokenizer, settings).run(SEEDS, 3, template=TEMPLATE))
    reference = [record.text for record in first]  # what will be written is real text to be measured against
    records = list(
        Synthesizer(expert, base, smollm2.tokenizer, settings).run(SEEDS, 6, template=TEMPLATE, reference=reference)
    )
    assert records[:3] == first
    assert all(max(record.negatives[0]) < len(SEEDS) for record in records)


def test_nothing_asked_is_plain_sampling(smollm2: Loaded, expert: PreTrainedModel) -> None:
    settings = chosen(gamma=0.0, eta=0.0, plausibility=None, top_k=5, temperature=0.7)
    records = list(Synthesizer(expert, None, smollm2.tokenizer, settings).run(SEEDS, 2, template=TEMPLATE))
    assert all(record.negatives == [] for record in records)
    inputs = smollm2.tokenizer([r.prompt for r in records], return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(torch_seed(5, 0))
    out = expert.generate(**inputs, do_sample=True, top_k=5, temperature=0.7, max_new_tokens=5)
    texts = smollm2.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [record.text for record in records] == [text.strip() for text in texts]


def test_texts_end_before_a_stop_string(smollm2: Loaded, expert: PreTrainedModel, base: PreTrainedModel) -> None:
    free = list(Synthesizer(expert, base, smollm2.tokenizer, chosen()).run(SEEDS, 3, template=TEMPLATE))
    marks = tuple({record.text[len(record.text) // 2 :].strip()[0] for record in free})  # of the middle of each text
    writer = Synthesizer(expert, base, smollm2.tokenizer, chosen(stop=marks))
    stopped = list(writer.run(SEEDS, 3, template=TEMPLATE))
    assert {record.finish for record in stopped} == {"stop"}
    for record, whole in zip(stopped, free, strict=True):
        assert record.text == whole.text[: min(whole.text.find(m) for m in marks if m in whole.text)].strip()
        assert record.tokens <= whole.tokens
    assert {record.finish for record in free} <= {"length", "eos"}
    assert all(record.tokens == 5 for record in free if record.finish == "length")


def test_negatives_are_cut_to_the_context(smollm2: Loaded, base: PreTrainedModel) -> None:
    short = first_layers(base, 1)
    short.config.max_position_embeddings = 36
    settings = chosen(gamma=0.0, negative_examples=4)
    records = list(Synthesizer(short, None, smollm2.tokenizer, settings).run(SEEDS, 4, template=TEMPLATE))
    assert all(1 <= len(record.negatives[0]) < 4 for record in records)
    short.config.max_position_embeddings = 14
    with pytest.raises(InputError, match=r"the prompt of seed 3 has .* more than the context: shorten one by"):
        list(Synthesizer(short, None, smollm2.tokenizer, settings).run(SEEDS, 4, template=TEMPLATE))


def test_chat_puts_both_prompts_into_the_template(smollm2: Loaded, expert: PreTrainedModel) -> None:
    writer = Synthesizer(expert, None, smollm2.tokenizer, chosen(gamma=0.0, chat=True))
    ids = writer._ids("Hello")
    assert smollm2.tokenizer.decode(ids).endswith("user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert len(list(writer.run(SEEDS, 1, template=TEMPLATE))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [True, False])
def test_a_batch_is_the_formula_sampled(smollm2: Loaded, balanced: bool) -> None:
    """Against a loop without a cache, a row at a time, the formula in float64."""
    expert, tokenizer = first_layers(smollm2.model, 6), smollm2.tokenizer
    base = first_layers(expert, 3)
    settings = chosen(
        gamma=0.3, eta=0.4, balanced=balanced, plausibility=0.05, top_k=7, temperature=0.9, max_new_tokens=5
    )
    records = list(Synthesizer(expert, base, tokenizer, settings).run(SEEDS, 3, template=TEMPLATE))
    expected = reference(expert, base, tokenizer, settings, records)
    assert [record.text for record in records] == expected


def reference(
    expert: PreTrainedModel, base: PreTrainedModel, tokenizer: Any, settings: Settings, records: Sequence[Record]
) -> list[str]:
    """The texts of the first batch of these records' prompts and negatives."""

    def log_probs(model: PreTrainedModel, ids: list[int]) -> Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

    pool = [str(seed["text"]) for seed in SEEDS]
    prompts = [tokenizer(record.prompt)["input_ids"] for record in records]
    negatives = [
        tokenizer("\n\n".join([*(pool[k] for k in record.negatives[0]), record.prompt]))["input_ids"]
        for record in records
    ]
    new: list[list[int]] = [[] for _ in records]
    torch.manual_seed(torch_seed(settings.seed, 0))
    for _ in range(settings.max_new_tokens):
        rows = []
        for prompt, negative, tokens in zip(prompts, negatives, new, strict=True):
            e, b, n = log_probs(expert, prompt + tokens), log_probs(base, prompt + tokens), negative + tokens
            first = 1 + settings.gamma + (settings.eta if settings.balanced else 0)
            z = first * e - settings.gamma * b - settings.eta * log_probs(expert, n)
            assert settings.plausibility is not None
            z[e.exp() < settings.plausibility * e.exp().max()] = -torch.inf
            z = z.log_softmax(-1) / settings.temperature
            z[z < z.topk(settings.top_k).values[-1]] = -torch.inf
            rows.append(z.softmax(-1).float())
        drawn = torch.multinomial(torch.stack(rows), 1)[:, 0].tolist()
        new = [[*tokens, token] for tokens, token in zip(new, drawn, strict=True)]
    ends = [tokens.index(2) if 2 in tokens else len(tokens) for tokens in new]
    return [tokenizer.decode(tokens[:end]).strip() for tokens, end in zip(new, ends, strict=True)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gamma": -0.1}, r"gamma is -0\.1"),
        ({"eta": -1.0}, r"eta is -1\.0: give a number of at least 0"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"plausibility": 0.0}, r"plausibility is 0\.0"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"negative_examples": 0}, "negative_examples is 0"),
        ({"negatives_per_row": 0}, "negatives_per_row is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("",)}, "stop is"),
        ({"stop": "x"}, "stop is 'x'"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Settings(**given)


def test_bad_input_is_refused_before_any_text(
    smollm2: Loaded, expert: PreTrainedModel, base: PreTrainedModel, tiny_llama: PreTrainedModel
) -> None:
    with pytest.raises(InputError, match=r"base is None and gamma is 0\.2"):
        Synthesizer(expert, None, smollm2.tokenizer, chosen())
    with pytest.raises(InputError, match="use models of one tokenizer"):
        Synthesizer(expert, tiny_llama, smollm2.tokenizer, chosen())
    writer = Synthesizer(expert, base, smollm2.tokenizer, chosen())
    for seeds, count, template, message in (
        ([], 1, TEMPLATE, "seeds is empty"),
        (SEEDS, 0, TEMPLATE, "count is 0"),
        ([{"text": " "}], 1, "x", 'seed 0 has "text"'),
        ([{"kind": "x"}], 1, TEMPLATE, 'seed 0 has "text" None'),
        (SEEDS[:1], 1, TEMPLATE, "the pool has 1 different texts: give 1 more"),
        (SEEDS, 1, "{{ kin }}", "did you mean 'kind'"),
    ):
        with pytest.raises(InputError, match=message):
            writer.batches(seeds, [count], template=template)
