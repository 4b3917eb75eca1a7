"""Task accuracy of entropy-adaptive decoding against the share of tokens that the large model writes.

    python bench/entropy_adaptive.py --large Qwen/Qwen2.5-Coder-1.5B-Instruct --small Qwen/Qwen2.5-Coder-0.5B-Instruct \
        --task humaneval=bench/data/humaneval_100.jsonl --rows bench/results/entropy_adaptive_humaneval.jsonl \
        --json bench/results/entropy_adaptive_humaneval.json --plot bench/results/entropy_adaptive_humaneval.png

Both ends of the curve are transformers' own `generate` of the two models; with `--small low-bit` the small end is the
method at a threshold that no text reaches. `--assisted` is transformers' speculative decoding with both, which writes
the large model's text. The thresholds are a fixed grid: nothing is fitted to the problems. Rows are written as they
come, and a run that was stopped goes on where it was. Batches of problems take turns over all arms; the seconds are of
batches, so that `--batch-size 1` on an idle machine is what to read them from.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria

import trimtab
from trimtab.compare.bootstrap import bootstrap, rate_ratio, share
from trimtab.compare.provenance import provenance
from trimtab.integrations.transformers.padding import pad_left
from trimtab.tasks import arithmetic, humaneval
from trimtab.tasks.problem import Problem, records

TASKS = {
    "humaneval": humaneval.problems,
    "gsm8k": arithmetic.gsm8k,
    "svamp": arithmetic.svamp,
    "svamp_short": arithmetic.svamp_short,
}
ENDS = ("small", "large")
ASSISTED = "assisted"
Row = dict[str, Any]

app = typer.Typer(add_completion=False)


@app.command()
def main(
    large: Annotated[str, typer.Option(help="Name, path or hub id.")],
    small: Annotated[str, typer.Option(help="The same, or low-bit: 8-bit weights of the large model.")],
    task: Annotated[str, typer.Option(metavar="|".join(TASKS) + "=FILE", help="The problems.")],
    thresholds: Annotated[str, typer.Option(help="In bits.")] = "0.05,0.1,0.2,0.3,0.4,0.6,0.8,1.2",
    limit: Annotated[int | None, typer.Option(help="So many problems from the first.")] = None,
    batch_size: Annotated[int, typer.Option(help="Problems generated together.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="For each problem.")] = 256,
    window: Annotated[int, typer.Option(help="Tokens in the rolling mean.")] = 5,
    min_stay: Annotated[int | None, typer.Option(help="Least tokens between switches; as --window.")] = None,
    dtype: Annotated[str, typer.Option(help="Of both models.")] = "bfloat16",
    rows_file: Annotated[Path | None, typer.Option("--rows", help="JSONL, appended to and resumed from.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against large-share here.")] = None,
    assisted: Annotated[
        bool, typer.Option(help="transformers' assisted generation too, with the small model.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
) -> None:
    """Accuracy, large-share, passes and seconds at each threshold."""
    if threads:
        torch.set_num_threads(threads)
    name, _, file = task.partition("=")
    if name not in TASKS or not file:
        raise typer.BadParameter(f"{task!r}: give one of {', '.join(TASKS)} and its file, as humaneval=FILE")
    problems = TASKS[name](Path(file))[:limit]
    if assisted and small == "low-bit":
        raise typer.BadParameter("--assisted needs a model of its own as --small")
    arms = [*ENDS, *([ASSISTED] if assisted else []), *thresholds.split(",")]
    rows = [] if rows_file is None or not rows_file.exists() else records(rows_file)
    model, tokenizer = trimtab.load(large, dtype=dtype)
    helper = small if small == "low-bit" else trimtab.load(small, dtype=dtype).model
    runs = _Runs(model, helper, tokenizer, window, min_stay, max_new_tokens)
    # of similar length in a batch: the longest sets the width of all
    ordered = sorted(problems, key=lambda problem: len(problem.message + problem.reply))
    done = {(row["arm"], row["id"]) for row in rows}
    with tqdm(total=len(arms) * len(ordered), initial=len(done), unit="text") as bar:
        for first in range(0, len(ordered), batch_size):
            for arm in arms:
                batch = [item for item in ordered[first : first + batch_size] if (arm, item.id) not in done]
                bar.set_description(arm)
                for row in runs(arm, batch) if batch else ():
                    rows.append(row)
                    bar.update()
                    if rows_file is not None:
                        with rows_file.open("a", encoding="utf-8") as stream:
                            print(json.dumps(row, ensure_ascii=False), file=stream)
    wanted = {problem.id for problem in problems}
    summary = summarize([row for row in rows if row["id"] in wanted and row["arm"] in arms], arms)
    if json_file is not None:
        settings = {"large": large, "small": small, "task": name, "problems": len(problems), "dtype": dtype}
        settings |= {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "window": window, "min_stay": min_stay}
        record = {"provenance": provenance(), "settings": settings, "arms": summary}
        json_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        from bench.frontier_plot import draw  # matplotlib takes a second and is not always wanted

        curve = {arm: found for arm, found in summary.items() if arm != ASSISTED}
        draw(curve, plot, title=f"{name}, n = {len(problems)}\n{_short(large)} with {_short(small)}")
    _show(summary, f"{name}: {large} with {small}, {len(problems)} problems")


class _Runs:
    """Generates a batch of problems in one arm, and marks what was written."""

    def __init__(
        self,
        large: PreTrainedModel,
        small: PreTrainedModel | str,
        tokenizer: PreTrainedTokenizerBase,
        window: int,
        min_stay: int | None,
        max_new_tokens: int,
    ) -> None:
        self.large, self.small, self.tokenizer = large, small, tokenizer
        self.window, self.min_stay = window, min_stay
        self.options = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
        # greedy all the same: what a checkpoint sets for sampling, and its penalties, would differ between the models
        for model in (large, small):
            if isinstance(model, PreTrainedModel):
                config = model.generation_config
                config.temperature = config.top_p = config.top_k = None
                config.repetition_penalty = None

    def __call__(self, arm: str, batch: Sequence[Problem]) -> Iterator[Row]:
        prompts = [problem.token_ids(self.tokenizer) for problem in batch]
        ids = pad_left(prompts, self.tokenizer.pad_token_id)
        mask = pad_left([[1] * len(prompt) for prompt in prompts])
        stop = list(batch[0].stop) or None
        start = time.perf_counter()
        if arm in (*ENDS, ASSISTED) and not (arm == "small" and isinstance(self.small, str)):
            model = self.small if arm == "small" else self.large
            assert isinstance(model, PreTrainedModel)
            # not `stop_strings`: assisted generation hands them to the small model without the tokenizer they need
            extra: dict[str, Any] = {"stopping_criteria": [StopStringCriteria(self.tokenizer, stop)]} if stop else {}
            if arm == ASSISTED:
                extra["assistant_model"] = self.small
            sequences = model.generate(ids, attention_mask=mask, **extra, **self.options)
            stats: Iterable[Any] = [None] * len(batch)
        else:
            threshold = float("inf") if arm == "small" else float(arm)
            method = trimtab.EntropyAdaptive(
                self.small,
                threshold,
                window=self.window,
                min_stay=self.min_stay,
                stop_strings=stop,
                tokenizer=self.tokenizer,
            )
            output = self.large.generate(
                ids, attention_mask=mask, custom_generate=method, return_dict_in_generate=True, **self.options
            )
            sequences, stats = output.sequences, output.stats.rows
        seconds = time.perf_counter() - start
        width = ids.shape[1]
        for problem, sequence, row in zip(batch, sequences, stats, strict=True):
            text = self.tokenizer.decode(sequence[width:], skip_special_tokens=True)
            new = self._written(sequence[width:].tolist())
            writer = "small" if arm == "small" else "large"
            tokens = {"small": 0, "large": 0} | {writer: new} if row is None else row.tokens
            yield {
                "arm": arm,
                "id": problem.id,
                "right": problem.right(text),
                "tokens": tokens,
                "switches": row.switches if row else 0,
                "forward_tokens": row.forward_tokens if row else None,
                "catch_up_passes": row.catch_up_passes if row else None,
                "seconds": seconds / len(batch),
                "text": text,
            }

    def _written(self, ids: list[int]) -> int:
        """Tokens before the padding; an end-of-text token counts."""
        ends = self.large.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        for place, token in enumerate(ids):
            if token in ends:
                return place + 1
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids.pop()
        return len(ids)


def summarize(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    """Figures by arm, with 95% intervals over problems.

    `of_large` is accuracy over that of the large model, `speed_of_large` tokens per second over its own.
    """
    of: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        of[row["arm"]][row["id"]] = row
    ids = sorted(of["large"])
    best = [float(of["large"][name]["right"]) for name in ids]
    slow = [float(of["large"][name]["seconds"]) for name in ids]
    long = [float(sum(of["large"][name]["tokens"].values())) for name in ids]
    found = {}
    for arm in arms:
        right = [float(of[arm][name]["right"]) for name in ids]
        large = [float(of[arm][name]["tokens"]["large"]) for name in ids]
        total = [float(sum(of[arm][name]["tokens"].values())) for name in ids]
        seconds = [float(of[arm][name]["seconds"]) for name in ids]
        found[arm] = {
            "accuracy": share(right, [1.0] * len(ids)).as_dict(),
            "of_large": bootstrap([right, best], lambda sums: sums[0] / sums[1]).as_dict(),
            "large_share": share(large, total).as_dict(),
            "tokens": sum(total),
            "switches": sum(of[arm][name]["switches"] for name in ids),
            "seconds": sum(seconds),
            "seconds_per_token": share(seconds, total).as_dict(),
            "speed_of_large": rate_ratio(total, seconds, long, slow).as_dict(),
        }
        fed = [of[arm][name]["forward_tokens"] for name in ids]
        if None not in fed:
            found[arm]["forward_tokens"] = {model: sum(one[model] for one in fed) for model in ENDS}
            passes = [of[arm][name]["catch_up_passes"] for name in ids]
            found[arm]["catch_up_passes"] = {model: sum(one[model] for one in passes) for model in ENDS}
    return found


def _short(name: str) -> str:
    return Path(name).name


def _show(summary: dict[str, Any], title: str) -> None:
    table = Table(title=title)
    speed = ("ms/token", "x large")
    for heading in ("threshold", "accuracy", "of the large", "large-share", "switches", "tokens", *speed):
        table.add_column(heading, justify="right")
    for arm, found in summary.items():
        table.add_row(
            arm,
            _interval(found["accuracy"]),
            _interval(found["of_large"]),
            f"{found['large_share']['value']:.3f}",
            str(found["switches"]),
            f"{found['tokens']:.0f}",
            f"{found['seconds_per_token']['value'] * 1e3:.1f}",
            _interval(found["speed_of_large"]),
        )
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def _interval(found: dict[str, float | None]) -> str:
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    app()
