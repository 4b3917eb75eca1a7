"""`--model trimtab` on tasks of this file, beside the harness's own `hf`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import trimtab
from trimtab.errors import InputError
from trimtab.integrations.lm_eval import StopTexts, TrimtabLM, main

QUESTIONS = ["What is 2 + 3?", "Which way is up?", "Name a colour.", "a\n\nb", "Whose is this very long question here?"]
OPTIONS = ["red", "a long answer of many letters", "b", "no"]
SHARED = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
"""
TASKS = {
    "own_answers": """
output_type: generate_until
doc_to_text: "Q: {{question}} A:"
doc_to_target: "x"
generation_kwargs: {until: ["e", "\\n\\n"], max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "own_choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "own_texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def random_model(seed: int, hidden: int = 64) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259, hidden_size=hidden, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models by name, and the tasks."""
    where = tmp_path_factory.mktemp("harness")
    for name, seed, hidden in (("large", 1, 64), ("base", 2, 32), ("expert", 3, 32)):
        random_model(seed, hidden).save_pretrained(where / name)
        byte_tokenizer().save_pretrained(where / name)
    data = where / "data.jsonl"
    data.write_text("".join(json.dumps({"question": q, "options": OPTIONS}) + "\n" for q in QUESTIONS))
    (where / "tasks").mkdir()
    for name, task in TASKS.items():
        (where / "tasks" / f"{name}.yaml").write_text(f"task: {name}{SHARED.format(data=data)}{task}")
    return where


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture
def run(folder: Path, cache: None, one_thread: None):
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)

    def answers(model: Any, *tasks: str) -> dict[str, list[Any]]:
        """What the model answered to each request of the tasks."""
        result = lm_eval.simple_evaluate(
            model=model, tasks=list(tasks or TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True
        )
        return {task: [sample["resps"] for sample in result["samples"][task]] for task in result["samples"]}

    return answers


def own(folder: Path, method: str = "none", batch_size: int = 3, **options: Any) -> TrimtabLM:
    return TrimtabLM(str(folder / "large"), method, batch_size=batch_size, device="cpu", **options)


def peer(folder: Path, name: str = "large") -> HFLM:
    model, tokenizer = trimtab.load(folder / name, device="cpu")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)


def worths(answers: dict[str, list[Any]]) -> list[float]:
    """Every log-likelihood, one after the other."""
    found = []
    for task in ("own_choices", "own_texts"):
        for sample in answers.get(task, []):
            for response in sample:
                value = response[0][0] if isinstance(response[0], (list, tuple)) else response[0]
                found.append(float(value))
    return found


def test_none_answers_as_hf_does(folder: Path, run) -> None:
    ours, theirs = run(own(folder)), run(peer(folder))
    assert ours["own_answers"] == theirs["own_answers"]
    assert len({str(answer) for answer in ours["own_answers"]}) > 2
    assert worths(ours) == pytest.approx(worths(theirs), abs=2e-4)
    greedy = [[[r[0][1] for r in sample] for sample in found["own_choices"]] for found in (ours, theirs)]
    assert greedy[0] == greedy[1]


def test_lossless_answers_as_hf_does(folder: Path, run) -> None:
    ours, theirs = run(own(folder, "quantized:mode=lossless")), run(peer(folder))
    assert ours["own_answers"] == theirs["own_answers"]
    assert worths(ours) == pytest.approx(worths(theirs), abs=2e-4)


def test_quantized_is_scored_by_the_low_bit_model(folder: Path, run) -> None:
    model = own(folder, "quantized:bits=8,drafter=none")
    in_one_pass = worths(run(model, "own_choices", "own_texts"))
    assert in_one_pass != pytest.approx(worths(run(peer(folder), "own_choices", "own_texts")), abs=2e-2)
    # another way to the same: by the method itself, along the text, one token at a time
    model._low_bit, model._along_the_text = None, True
    assert worths(run(model, "own_choices", "own_texts")) == pytest.approx(in_one_pass, abs=2e-4)


def test_fusion_is_scored_by_the_fused_distribution(folder: Path, run) -> None:
    models = {name: trimtab.load(folder / name, device="cpu").model.double() for name in ("large", "base", "expert")}
    tokenizer = byte_tokenizer()

    def reference(context: list[int], text: list[int]) -> tuple[float, bool]:
        ids = torch.tensor([context + text])
        with torch.no_grad():
            logits = {name: model(ids).logits[0] for name, model in models.items()}
        fused = (logits["large"] + logits["expert"] - logits["base"]).log_softmax(-1)[len(context) - 1 : -1]
        return float(fused[range(len(text)), text].sum()), fused.argmax(-1).tolist() == text

    fusion = own(folder, "fusion", small_base=str(folder / "base"), expert=str(folder / "expert"), alpha=1)
    answers = run(fusion, "own_choices", "own_texts")
    expected = [
        reference(tokenizer.encode(question), tokenizer.encode(f" {option}"))
        for question in QUESTIONS
        for option in OPTIONS
    ]
    expected += [reference([tokenizer.bos_token_id], tokenizer.encode(question)) for question in QUESTIONS]
    assert worths(answers) == pytest.approx([worth for worth, _ in expected], abs=2e-3)
    greedy = [response[0][1] for sample in answers["own_choices"] for response in sample]
    assert greedy == [best for _, best in expected[: len(greedy)]]


def test_ead_is_scored_by_whose_turn_it_is(folder: Path, run) -> None:
    small = own(folder, "ead", small=str(folder / "base"), threshold=1e9)
    assert worths(run(small, "own_choices", "own_texts")) == pytest.approx(worths(run(peer(folder, "base"))), abs=2e-3)
    switching = own(folder, f"ead:small={folder / 'base'},threshold=0")
    mixed = worths(run(switching, "own_choices"))
    assert mixed != pytest.approx(worths(run(peer(folder, "base"), "own_choices")), abs=1e-2)


def test_a_request_does_not_depend_on_its_batch(folder: Path, run) -> None:
    options = {"small_base": str(folder / "base"), "expert": str(folder / "expert")}
    alone, together = (run(own(folder, "fusion", size, **options)) for size in (1, 5))
    assert alone["own_answers"] == together["own_answers"]
    assert worths(alone) == pytest.approx(worths(together), abs=2e-3)


@pytest.mark.parametrize("method", ["quantized:bits=8", "quantized:bits=16", "ead:small=low-bit,threshold=3"])
def test_answers_end_before_their_stops(folder: Path, run, method: str) -> None:
    for sample in run(own(folder, method), "own_answers")["own_answers"]:
        assert "e" not in sample[0][0]


def test_a_set_up_is_put_together_again_where_the_harness_split_it(folder: Path) -> None:
    model = TrimtabLM.create_from_arg_string(
        f"pretrained={folder / 'large'},method=quantized:bits=8,mode=lossless,quantize_head=True,device=cpu",
        {"batch_size": 2, "max_batch_size": None, "device": None},
    )
    assert model.setup == "quantized:bits=8,mode=lossless,quantize_head=true"
    assert model.get_model_info()["trimtab_setup"] == model.setup


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("quantised", {}, "quantized"),
        ("quantized", {"bits": 5}, "bits is 5"),
        ("none:temperature=1", {}, "--gen_kwargs temperature=1"),
        ("none:engine=vllm", {}, "engine is 'vllm'"),
        ("temperature", {}, "method is 'temperature'"),
        ("none", {"windw": 3}, "windw"),
    ],
)
def test_bad_set_ups_are_refused(folder: Path, method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        own(folder, method, **options)
    assert "\n" not in str(refused.value)


def test_a_row_ends_by_its_own_new_text() -> None:
    tokenizer = byte_tokenizer()
    prompts = ["ab##", "longer##"]
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")["input_ids"]
    ended = StopTexts(tokenizer, ["##", ""], encoded)
    assert ended(encoded, None).tolist() == [False, False]

    def after(*texts: str) -> list[bool]:
        rows = [row.tolist() + tokenizer.encode(text) for row, text in zip(encoded, texts, strict=True)]
        width = max(map(len, rows))
        # a method whose rows have different lengths fills the shorter ones at the start
        return ended(torch.tensor([[0] * (width - len(row)) + row for row in rows]), None).tolist()

    assert after("x", "y") == [False, False]
    assert after("##", "y#") == [True, False]
    # the prompt's own ## is moved to where the longer row has its new text
    assert after("#", "yyyyyy") == [False, False]
    assert after("zzzz##", "##") == [True, True]


@pytest.mark.slow
def test_the_command_knows_trimtab(folder: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "trimtab.cli", "lm-eval", "--tasks", "own_answers,own_choices"),
        *("--include_path", str(folder / "tasks"), "--batch_size", "2", "--output_path", str(tmp_path / "out")),
        *("--model_args", f"pretrained={folder / 'large'},method=quantized:bits=8,mode=lossless"),
    ]
    environment = {"HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert "own_choices" in done.stdout
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["config"]["trimtab_setup"] == "quantized:bits=8,mode=lossless"

    command[command.index("--model_args") + 1] = f"pretrained={folder / 'large'},method=quantised"
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("trimtab: error: set-up 'quantised'")


def test_the_command_names_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: seen.append(list(sys.argv)))
    main(["--tasks", "x"])
    main(["run", "--model", "hf", "--tasks", "x"])
    assert seen == [
        ["lm_eval", "run", "--model", "trimtab", "--tasks", "x"],
        ["lm_eval", "run", "--model", "hf", "--tasks", "x"],
    ]
