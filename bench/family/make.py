"""Make the family of models from SmolLM2-135M, on a CPU.

    python bench/family/make.py corpus base experts ceilings style --gsm8k bench/data/gsm8k_train.jsonl

Stages write into bench/family/weights and their figures into bench/results/family.json. Everything is seeded; another
version of torch gives slightly other weights, one of Python another corpus, since its docstrings are part of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import typer
from safetensors.torch import load_file, save_file

import trimtab
from bench.family.corpus import corpus
from bench.family.distill import choose_layers, heal
from bench.family.finetune import finetune
from bench.family.members import LARGE, WEIGHTS, load_members, save_base
from bench.family.tasks import END, TASKS, items
from bench.models import with_layers
from trimtab.compare.provenance import provenance
from trimtab.tasks.problem import records

LAYERS = 11
EXAMPLES = {"experts": 3200, "ceilings": 800}
"""Of each task; the small base needs more of them to reach what the large model does."""
QUESTIONS = 1000
"""Records of GSM8K that the style expert is taught, from the first; those from 7,000 on are for its judges."""
RESULTS = Path(__file__).resolve().parents[1] / "results" / "family.json"


class Stage(StrEnum):
    """What to make, in an order that works."""

    CORPUS = "corpus"
    BASE = "base"
    EXPERTS = "experts"
    CEILINGS = "ceilings"
    STYLE = "style"


def main(
    stages: Annotated[list[Stage], typer.Argument(help="What to make.")],
    gsm8k: Annotated[Path, typer.Option(help="The training split, JSONL.")] = Path("bench/data/gsm8k_train.jsonl"),
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
) -> None:
    """Make members of the family and record what they cost and reached."""
    if threads:
        torch.set_num_threads(threads)
    WEIGHTS.mkdir(exist_ok=True)
    make: dict[Stage, Callable[[Path], dict[str, Any]]] = {
        Stage.CORPUS: _corpus,
        Stage.BASE: _base,
        Stage.EXPERTS: _experts,
        Stage.CEILINGS: _ceilings,
        Stage.STYLE: _style,
    }
    for stage in stages:
        start = time.perf_counter()
        figures = make[stage](gsm8k)
        figures |= {"minutes": (time.perf_counter() - start) / 60, "provenance": provenance()}
        # read again: stages may be run side by side
        record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        record[stage.value] = figures
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(stage.value, {name: value for name, value in figures.items() if name != "provenance"})


def _corpus(gsm8k: Path) -> dict[str, Any]:
    # the writing is the slow part, and half precision is good enough to write
    blocks = corpus(*trimtab.load(LARGE, dtype="bfloat16"), gsm8k, problems=480, texts=320)
    save_file({"blocks": blocks.int()}, WEIGHTS / "corpus.safetensors")
    return {"tokens": blocks.numel()}


def _base(_: Path) -> dict[str, Any]:
    blocks = load_file(WEIGHTS / "corpus.safetensors")["blocks"].long()
    large, _tokenizer = trimtab.load(LARGE)
    layers = choose_layers(large, blocks[:2, :96], LAYERS)
    small = with_layers(large, layers)
    before, after = heal(small, large, blocks, epochs=2, rate=6e-4)
    save_base(small, layers)
    return {"layers": layers, "divergence": {"before": before, "after": after}}


def _experts(_: Path) -> dict[str, Any]:
    losses = {}
    for task in TASKS:
        members, tokenizer = load_members("base")
        pairs = [(item.prompt, item.target + END) for item in items(task, EXAMPLES["experts"], "train")]
        losses[task] = finetune(
            members["base"], tokenizer, pairs, WEIGHTS / task, base="base", rank=16, rate=1.5e-3, epochs=1
        )
    return {"examples": EXAMPLES["experts"], "losses": losses}


def _ceilings(_: Path) -> dict[str, Any]:
    losses = {}
    for task in TASKS:
        members, tokenizer = load_members("large")
        pairs = [(item.prompt, item.target + END) for item in items(task, EXAMPLES["ceilings"], "train")]
        folder = WEIGHTS / f"large-{task}"
        losses[task] = finetune(members["large"], tokenizer, pairs, folder, base=LARGE, rank=8, rate=1e-3, epochs=1)
    return {"examples": EXAMPLES["ceilings"], "losses": losses}


def _style(gsm8k: Path) -> dict[str, Any]:
    members, tokenizer = load_members("large")
    pairs = [("Problem:", f" {record['question'].strip()}{END}") for record in records(gsm8k)[:QUESTIONS]]
    folder = WEIGHTS / "large-questions"
    loss = finetune(members["large"], tokenizer, pairs, folder, base=LARGE, rank=8, rate=1e-3, epochs=1)
    return {"examples": QUESTIONS, "loss": loss}


if __name__ == "__main__":
    typer.run(main)
