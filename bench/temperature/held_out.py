"""Labelled prompts that the head is not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.temperature.training_prompts import Labelled

HERE = Path(__file__).parent
SPEC_BENCH = HERE.parent / "data" / "spec_bench_60.jsonl"

_ABILITY_OF = {
    "translation": "MT",
    "summarization": "SUMM",
    "writing": "CT",
    "roleplay": "CT",
    "math_reasoning": "CR",
    "math": "CR",
    "reasoning": "CR",
    "qa": "IF",
    "coding": "IF",
    "extraction": "IF",
    "stem": "IF",
    "humanities": "IF",
}
"""By category of Spec-Bench. A passage with a question (rag) is none of the six more than another, and left out."""


def by_hand(name: str) -> list[Labelled]:
    """Prompts of held_out.jsonl, held_out_2.jsonl or development.jsonl."""
    return [
        Labelled(record["prompt"], record["ability"], name.replace("_", " "))
        for record in _records(HERE / f"{name}.jsonl")
    ]


def spec_bench(path: Path = SPEC_BENCH) -> list[Labelled]:
    """First turns, with the ability that the category stands for."""
    return [
        Labelled(record["turns"][0], _ABILITY_OF[record["category"]], f"Spec-Bench {record['category']}")
        for record in _records(path)
        if record["category"] in _ABILITY_OF
    ]


def more(path: Path, ability: str) -> list[Labelled]:
    """A file of GSM8K, MATH, SVAMP or HumanEval, all of one ability."""
    return [Labelled(_text(record), ability, f"{path.parent.name} {path.stem}") for record in _records(path)]


def _text(record: dict[str, Any]) -> str:
    if "Body" in record:
        return f"{record['Body'].strip()} {record['Question'].strip()}"
    return next(str(record[field]) for field in ("question", "problem", "prompt") if field in record)


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
