"""What trimtab does, in a minute: a streamed answer, then quantised verification beside transformers on five prompts.

    python bench/demo.py

It is a taste on few prompts; `bench/quantized_verification.py` is the measurement.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

import trimtab
from bench.arms import GREEDY, make_arms
from bench.measure import Row, Task, alternate
from bench.prompts import encode
from bench.quality import Difference, TieJudge
from bench.report import summarize
from trimtab.compare.prompts import read_prompts
from trimtab.compare.provenance import cpu_name

PROMPTS = Path(__file__).with_name("demo_prompts.jsonl")
LABELS = {
    "plain": "transformers, plain generate",
    "hf_prompt_lookup": "transformers, prompt lookup",
    "quantized": "trimtab, quantized (8 bits)",
    "lossless": "trimtab, lossless",
}
WARM_UP_TOKENS = 8
TIE = 1e-3

app = typer.Typer(add_completion=False)
out = Console(highlight=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="What trimtab.load takes.")] = "smollm2-135m",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 96,
) -> None:
    """Show quantised verification on a few prompts."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        loaded, tokenizer = trimtab.load(model)
    except trimtab.InputError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    prompts = read_prompts(PROMPTS)
    tasks = [Task(prompt.id, "demo", encode(tokenizer, prompt.text)) for prompt in prompts]

    out.print(f"[bold]{model}[/bold] answers, verified in 8 bits by trimtab:\n")
    shown = next(index for index, prompt in enumerate(prompts) if prompt.id == "email")
    out.print(prompts[shown].text, style="dim", markup=False, soft_wrap=True)
    out.print()
    _stream(loaded, tokenizer, tasks[shown], max_new_tokens)

    rows = _measure(loaded, tasks, max_new_tokens)
    out.print()
    out.print(_table(rows, model, len(tasks)))
    _say_how_exact(rows, tasks, loaded)
    out.print(
        f'\nGo on with your own prompt: trimtab generate --model {model} "Write a haiku about the sea."',
        markup=False,
        soft_wrap=True,
    )


def _stream(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, max_new_tokens: int) -> None:
    ids = torch.tensor([task.ids], device=model.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=trimtab.QuantizedVerification(bits=8),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        max_new_tokens=max_new_tokens,
        **GREEDY,
    )


def _measure(model: PreTrainedModel, tasks: list[Task], max_new_tokens: int) -> list[Row]:
    arms = make_arms(list(LABELS), model, max_new_tokens)
    decodes = {name: arm.decode for name, arm in arms.items()}
    warm_up = Task("warm-up", "demo", tasks[0].ids[:WARM_UP_TOKENS])
    for _ in alternate(decodes, [warm_up], device=model.device):
        pass
    runs = alternate(decodes, tasks, device=model.device)
    return list(tqdm(runs, total=len(tasks) * len(arms), desc="each prompt, four ways", unit="run", leave=False))


def _table(rows: list[Row], model: str, prompts: int) -> Table:
    figures = summarize(rows)["demo"]["arms"]
    threads = torch.get_num_threads()
    shown = Table(
        title=f"{model} on {cpu_name()}, {prompts} prompts, threads: {threads}",
        title_justify="left",
    )
    shown.add_column("", no_wrap=True)
    for heading in ("median tok/s", "x plain", "tok/pass"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for arm, label in LABELS.items():
        row = figures[arm]
        ratio = "1.00" if arm == "plain" else f"{row['ratio_to_plain_median']:.2f}"
        length = row["acceptance_length"] or 1.0
        style = "bold" if label.startswith("trimtab") else None
        shown.add_row(label, f"{row['tokens_per_second_median']:.1f}", ratio, f"{length:.2f}", style=style)
    return shown


def _say_how_exact(rows: list[Row], tasks: list[Task], model: PreTrainedModel) -> None:
    ids = {(row.arm, row.id): row.ids for row in rows}
    for arm in ("lossless", "quantized"):
        same = sum(ids[arm, task.id] == ids["plain", task.id] for task in tasks)
        out.print(f"{LABELS[arm]}: same text as plain generate: {same}/{len(tasks)}", markup=False, soft_wrap=True)
    judge = TieJudge(model)
    for task in tasks:
        found: Difference | None = judge("lossless", task.id, task.ids, ids["lossless", task.id], ids["plain", task.id])
        if found is not None:
            kind = "a rounding tie" if found.is_tie(TIE) else "NOT a tie: please report it"
            out.print(f"  {task.id}: differs from token {found.position}, top-2 gap {found.top2_gap:.1e}: {kind}")


if __name__ == "__main__":
    app()
