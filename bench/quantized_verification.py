"""Quantised verification beside plain decoding, prompt lookup and its own parts, in one process.

    python bench/quantized_verification.py --prompts questions.jsonl --limit 60 --json out.json --plot out.png

Every arm decodes every prompt greedily, in turn, and its tokens are counted the same way. The exit status is 1 where
an arm that promises the text of plain decoding wrote another one and no rounding tie explains it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import trimtab
from bench.arms import EXACT, GGUF, NAMES, Arm, make_arms
from bench.low_bit_quality import low_bit_quality
from bench.measure import Row, Task, alternate
from bench.models import load_packed
from bench.prompts import encode
from bench.quality import Difference, TieJudge
from bench.report import interval_text, summarize, table
from trimtab.compare.prompts import Prompt, read_prompts, take_evenly
from trimtab.compare.provenance import cpu_name, load_average, provenance
from trimtab.integrations.transformers.runner import context_length

PROMPTS = Path(__file__).with_name("demo_prompts.jsonl")
QUICK = {"limit": 6, "max_new_tokens": 16, "rounds": 1}

app = typer.Typer(add_completion=False)
notes = Console(stderr=True, highlight=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="What trimtab.load takes.")] = "smollm2-135m",
    prompts: Annotated[Path, typer.Option(help="JSONL of Spec-Bench, `prompt` records or GSM8K.")] = PROMPTS,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts, evenly over the groups.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Times to run every prompt; seconds are the median.")] = 1,
    plot: Annotated[list[Path] | None, typer.Option(help="PNG or SVG to draw; may be given twice.")] = None,
    arms: Annotated[str, typer.Option(help="Some of the arms, separated by commas.")] = ",".join(NAMES),
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; float32 on the CPU.")] = None,
    tie_gap: Annotated[
        float, typer.Option(help="Largest difference of logits that counts as a tie; half precision needs more.")
    ] = 1e-3,
    keep_ids: Annotated[bool, typer.Option(help="Keep the generated token ids in the JSON.")] = False,
    quick: Annotated[bool, typer.Option(help="A smoke run: at most 6 prompts and 16 tokens.")] = False,
) -> None:
    """Measure quantised verification beside its peers."""
    if quick:
        limit, rounds = min(limit or QUICK["limit"], QUICK["limit"]), QUICK["rounds"]
        max_new_tokens = min(max_new_tokens, QUICK["max_new_tokens"])
    if threads:
        torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = Options(
        model=model,
        prompts=prompts,
        limit=limit,
        json_out=json_out,
        max_new_tokens=max_new_tokens,
        rounds=rounds,
        plots=plot or [],
        arms=[name.strip() for name in arms.split(",")],
        device=device,
        dtype=dtype,
        tie_gap=tie_gap,
        keep_ids=keep_ids,
    )
    try:
        failed = _run(options)
    except trimtab.InputError as error:
        notes.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, `--quick` and `--threads` done with."""

    model: str
    prompts: Path
    limit: int | None
    json_out: Path | None
    max_new_tokens: int
    rounds: int
    plots: list[Path]
    arms: list[str]
    device: str | None
    dtype: str | None
    tie_gap: float
    keep_ids: bool


def _run(options: Options) -> bool:
    """Measure, write and show; whether a text differs that must not."""
    about = provenance() | {"load_average_before": load_average()}
    chosen = take_evenly(read_prompts(options.prompts), options.limit)
    model, tokenizer = trimtab.load(options.model, dtype=options.dtype, device=options.device)
    packed, why = load_packed(options.model, model.device) if GGUF in options.arms else (None, "")
    arms = make_arms(options.arms, model, options.max_new_tokens, packed)
    left_out = {name: why for name in options.arms if name not in arms}
    for name, reason in left_out.items():
        notes.print(f"arm {name} is left out: {reason}", markup=False, soft_wrap=True)
    tasks = _tasks(chosen, tokenizer, model, options.max_new_tokens)

    rows = _measure(arms, tasks, options.rounds, model.device)
    first = {(row.arm, row.id, row.group): row.ids for row in rows if row.round == 0}
    differences = _differences(first, tasks, model) if "plain" in arms else []
    summary = summarize(rows)
    quality = low_bit_quality(arms, tasks, chosen, first, model, tokenizer)

    dtype = str(model.dtype).removeprefix("torch.")
    about |= {
        "load_average_after": load_average(),
        "model": options.model,
        "architecture": type(model).__name__,
        "dtype": dtype,
        "device": str(model.device),
        "prompts": str(options.prompts),
        "prompts_measured": len(tasks),
        "max_new_tokens": options.max_new_tokens,
        "rounds": options.rounds,
        "tie_gap": options.tie_gap,
        "arms": {name: arm.settings for name, arm in arms.items()},
        "arms_left_out": left_out,
    }
    if options.json_out is not None:
        result = {
            "provenance": about,
            "summary": summary,
            "quality": quality,
            "differences": [_finite(asdict(found)) | {"tie": found.is_tie(options.tie_gap)} for found in differences],
            "rows": [_plain_row(row, options.keep_ids) for row in rows],
        }
        options.json_out.parent.mkdir(parents=True, exist_ok=True)
        options.json_out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    machine = about["gpu"] if model.device.type == "cuda" else f"{cpu_name()}, threads: {about['threads']}"
    setting = f"{dtype} on {machine}; {len(tasks)} prompts, up to {options.max_new_tokens} new tokens"
    if options.plots:
        from bench.plots import ratio_bars  # matplotlib takes a second and is not always wanted

        heading = f"{options.model}: decoding speed relative to plain generate"
        ratio_bars(summary, list(arms), options.plots, title=heading, subtitle=f"{setting}; black lines: 95% intervals")
    _show(table(summary, list(arms), f"{options.model}, {setting}"), quality, differences, options.tie_gap)
    return any(not found.is_tie(options.tie_gap) for found in differences)


def _tasks(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_new_tokens: int
) -> list[Task]:
    tasks = [Task(prompt.id, prompt.group, encode(tokenizer, prompt.text)) for prompt in prompts]
    room = (context_length(model) or sys.maxsize) - max_new_tokens
    fitting = [task for task in tasks if len(task.ids) <= room]
    if len(fitting) < len(tasks):
        notes.print(f"{len(tasks) - len(fitting)} prompts are longer than the model's context and are left out")
    if not fitting:
        raise trimtab.InputError("no prompt fits the model's context: lower --max-new-tokens")
    return fitting


def _measure(arms: dict[str, Arm], tasks: Sequence[Task], rounds: int, device: torch.device) -> list[Row]:
    decodes = {name: arm.decode for name, arm in arms.items()}
    with tqdm(total=(len(tasks) * rounds + 1) * len(arms), unit="run", desc="warming up") as bar:
        for _ in alternate(decodes, tasks[:1], device=device):
            bar.update()
        rows = []
        for row in alternate(decodes, tasks, rounds=rounds, device=device):
            rows.append(row)
            bar.set_description(f"{row.group} {row.arm}")
            bar.update()
    return rows


def _differences(
    first: dict[tuple[str, str, str], list[int]], tasks: Sequence[Task], model: PreTrainedModel
) -> list[Difference]:
    judge = TieJudge(model)
    found = []
    for task in tasks:
        for arm in EXACT:
            ids = first.get((arm, task.id, task.group))
            if ids is not None:
                found.append(judge(arm, task.id, task.ids, ids, first["plain", task.id, task.group]))
    return [difference for difference in found if difference is not None]


def _plain_row(row: Row, keep_ids: bool) -> dict[str, Any]:
    data = asdict(row)
    if not keep_ids:
        del data["ids"]
    return data


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in data.items()}


def _show(shown: Table, quality: dict[str, Any] | None, differences: Sequence[Difference], tie_gap: float) -> None:
    # a pipe has no width of its own; 80 columns would cut the figures off
    out = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    out.print(shown)
    out.print("In brackets: 95% intervals, bootstrap over prompts.", style="dim", markup=False, soft_wrap=True)
    if quality is not None:
        agreement, perplexity = list(quality["argmax_agreement"].values())[-1], quality["perplexity"]
        out.print(
            f"Low-bit weights against full precision: the same next token at {interval_text(agreement, digits=3)} of "
            f"{agreement['positions']:,} positions; perplexity {perplexity['full']:.3f} -> "
            f"{perplexity['low_bit']:.3f}, change in percent {interval_text(perplexity['change_percent'])}",
            markup=False,
            soft_wrap=True,
        )
    for found in differences:
        place = f"{found.arm}, prompt {found.id}: leaves the text of plain at token {found.position}"
        gap = f"top-2 gap {found.top2_gap:.2e}, shortfall {found.shortfall:.2e}"
        if found.is_tie(tie_gap):
            out.print(f"{place}: a tie ({gap})", style="dim", markup=False, soft_wrap=True)
        else:
            notes.print(f"error: {place}, and it is no tie ({gap})", style="red", markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
