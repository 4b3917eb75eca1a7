"""What choosing alpha costs beside the models: each step of dynamic logit fusion, taken apart.

    python bench/fusion_overhead.py --json bench/results/fusion_overhead.json

The large model is a real one; base and expert are its first layers, the expert with its matrices changed a little, so
that alpha has to be searched for. In each step of `generate` the solver (`decoding/fusion.py`, from logits to fused
log-probabilities) is timed, and the rest of the step, which is the pass of the three models and what `generate` does
around it. Both are measured in the same step, and the ways to solve take turns, so load on the machine meets all.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedModel

import trimtab
from bench.models import first_layers, perturbed
from trimtab import LogitFusion
from trimtab.compare.prompts import read_prompts
from trimtab.compare.provenance import load_average, provenance
from trimtab.compare.schedule import rotated
from trimtab.decoding.fusion import fuse
from trimtab.kernels.native.build import library

HERE = Path(__file__).parent
ARMS = ("dynamic", "dynamic, torch operators", "alpha = 1")
WARM = 2
"""Steps at the beginning of a text that are left out: the prompt is read in them."""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="What trimtab.load takes.")] = "smollm2-135m",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the two small models.")] = 11,
    batch_sizes: Annotated[str, typer.Option(help="With commas between.")] = "1,8",
    max_new_tokens: Annotated[int, typer.Option(min=WARM + 2)] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Texts for each way to solve.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
) -> None:
    """Time the solver against a step of the three models."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    sizes = [int(size) for size in batch_sizes.split(",")]
    about = provenance() | {"load_average_before": load_average()}
    large, tokenizer = trimtab.load(model)
    base = first_layers(large, layers)
    expert = perturbed(base, 0, 0.05)
    texts = [prompt.text for prompt in read_prompts(HERE / "demo_prompts.jsonl")]
    results = []
    for size in sizes:
        tokenizer.padding_side = "left"
        # the beginnings of the prompts: one length, whatever the batch
        chosen = [texts[row % len(texts)][: 200 + 10 * row] for row in range(size)]
        inputs = tokenizer(chosen, return_tensors="pt", padding=True, truncation=True, max_length=48)
        steps: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
        for turn in tqdm(range(rounds + 1), desc=f"batch of {size}", unit="round", leave=False):
            for arm in rotated(ARMS, turn):
                found = _steps(arm, large, base, expert, dict(inputs), max_new_tokens)
                steps[arm] += found if turn else []  # the first round warms up
        results += [{"batch": size, "arm": arm, **_figures(found)} for arm, found in steps.items()]
    about["load_average_after"] = load_average()
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"model": model, "layers": layers, "max_new_tokens": max_new_tokens, "rounds": rounds}
        json_out.write_text(json.dumps({"provenance": about, **settings, "results": results}, indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(_shown(results))


def _steps(
    arm: str,
    large: PreTrainedModel,
    base: PreTrainedModel,
    expert: PreTrainedModel,
    inputs: dict[str, Any],
    max_new_tokens: int,
) -> list[tuple[float, float]]:
    """Seconds of each step after the first ones: of the solver, and of the rest."""
    fusion = LogitFusion(base, [expert], 1.0 if arm == "alpha = 1" else "dynamic")
    native = None if "torch" in arm else library()
    kernels = mock.patch("trimtab.kernels.tilted_moments.library", return_value=native)
    with _timed_solver() as marks, kernels:
        large.generate(
            **inputs,
            logits_processor=[fusion],
            min_new_tokens=max_new_tokens,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    solver = [end - begin for begin, end in marks]
    whole = [mark[1] - before[1] for before, mark in itertools.pairwise(marks)]
    return [(own, step - own) for own, step in zip(solver[1:], whole, strict=True)][WARM - 1 :]


@contextmanager
def _timed_solver() -> Iterator[list[tuple[float, float]]]:
    """When each call of the solver began and ended."""
    marks: list[tuple[float, float]] = []

    def timed(*args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        step = fuse(*args, **options)
        marks.append((begin, time.perf_counter()))
        return step

    with mock.patch("trimtab.integrations.transformers.logit_fusion.fuse", timed):
        yield marks


def _figures(steps: list[tuple[float, float]]) -> dict[str, Any]:
    def spread(seconds: list[float]) -> dict[str, float]:
        low, middle, high = statistics.quantiles(seconds, n=4)
        return {"median": round(1e3 * middle, 3), "p25": round(1e3 * low, 3), "p75": round(1e3 * high, 3)}

    solver, models = (list(part) for part in zip(*steps, strict=True))
    return {
        "steps": len(steps),
        "solver_ms": spread(solver),
        "models_ms": spread(models),
        "share": round(statistics.median(solver) / statistics.median(models), 4),
    }


def _shown(results: list[dict[str, Any]]) -> Table:
    table = Table("batch", "alpha", "solver, ms", "three models, ms", "solver / models", title="a step, medians")
    for row in results:
        table.add_row(
            str(row["batch"]),
            row["arm"],
            f"{row['solver_ms']['median']:.2f}",
            f"{row['models_ms']['median']:.1f}",
            f"{row['share']:.1%}",
        )
    return table


if __name__ == "__main__":
    app()
