"""How much of the way to a fine-tuned large model its small experts carry it, on the family of bench/family.

    python bench/logit_fusion.py --json bench/results/logit_fusion.json

On items that no member was trained on: the large model, the small base, its experts, the large model fine-tuned on the
same examples (the ceiling), and fusion with a fixed and a dynamic alpha, with the task's own expert and with both.
`closed` is (fusion - large) / (ceiling - large). Greedy decoding.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

import trimtab
from bench.family.members import Member, load_members
from bench.family.tasks import TASKS, Item, items
from trimtab.compare.bootstrap import bootstrap, share
from trimtab.compare.provenance import provenance
from trimtab.integrations.transformers.padding import pad_left

MAX_NEW_TOKENS = 44
SEED = 1
"""Items of seed 0 were looked at while the recipe of the family was settled."""
ALPHAS: tuple[float | Literal["dynamic"], ...] = (0.5, 1.0, 1.5, "dynamic")

app = typer.Typer(add_completion=False)


@app.command()
def main(
    count: Annotated[int, typer.Option(help="Items of each task.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Items generated together.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
) -> None:
    """Accuracy of every arm, and the share of the gap to the fine-tuned large model that fusion closes."""
    if threads:
        torch.set_num_threads(threads)
    ceilings: list[Member] = ["large-extract", "large-record"]
    members, tokenizer = load_members("large", "base", *TASKS, *ceilings)
    large, base = members["large"], members["base"]
    results: dict[str, Any] = {"provenance": provenance(), "items": count, "tasks": {}}
    for task in TASKS:
        asked = items(task, count, "test", SEED)
        others = [name for name in TASKS if name != task]
        arms: dict[str, tuple[PreTrainedModel, list[LogitsProcessor]]] = {
            "large": (large, []),
            "base": (base, []),
            "expert": (members[task], []),
            "ceiling": (members[f"large-{task}"], []),  # type: ignore[index]
        }
        own, both = [members[task]], [members[task], *(members[name] for name in others)]
        for alpha in ALPHAS:
            arms[f"alpha {alpha}"] = (large, [trimtab.LogitFusion(base, own, alpha=alpha)])
        for alpha in ALPHAS:
            arms[f"two experts, alpha {alpha}"] = (large, [trimtab.LogitFusion(base, both, alpha=alpha)])
        arms["two experts, all active"] = (large, [trimtab.LogitFusion(base, both, active="all")])
        right = {
            name: _right(model, tokenizer, asked, processors, batch_size, f"{task}: {name}")
            for name, (model, processors) in arms.items()
        }
        results["tasks"][task] = _summary(right)
        _show(task, results["tasks"][task])
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _right(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Item],
    processors: list[LogitsProcessor],
    batch_size: int,
    label: str,
) -> list[bool]:
    found = []
    for first in tqdm(range(0, len(asked), batch_size), desc=label, unit="batch"):
        batch = asked[first : first + batch_size]
        prompts = [list(tokenizer(item.prompt, add_special_tokens=False)["input_ids"]) for item in batch]
        ids = pad_left(prompts, tokenizer.pad_token_id)
        made = model.generate(
            ids,
            attention_mask=pad_left([[1] * len(prompt) for prompt in prompts]),
            logits_processor=processors,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            stop_strings=["\n"],
            tokenizer=tokenizer,
        )
        texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        found += [item.right(text) for item, text in zip(batch, texts, strict=True)]
    return found


def _summary(right: dict[str, list[bool]]) -> dict[str, Any]:
    """Accuracy of each arm, and for fusion the share of the gap; 95% intervals, bootstrap over items."""
    scores = {arm: [float(one) for one in marks] for arm, marks in right.items()}
    found: dict[str, Any] = {}
    for arm, score in scores.items():
        found[arm] = {"accuracy": share(score, [1.0] * len(score)).as_dict()}
        if "alpha" in arm or "experts" in arm:
            columns = [score, scores["large"], scores["ceiling"]]
            closed = bootstrap(columns, lambda sums: (sums[0] - sums[1]) / (sums[2] - sums[1]))
            found[arm]["closed"] = closed.as_dict()
    return found


def _show(task: str, summary: dict[str, Any]) -> None:
    table = Table(title=task)
    for heading in ("arm", "accuracy", "share of the gap closed"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, found in summary.items():
        table.add_row(arm, _interval(found["accuracy"]), _interval(found["closed"]) if "closed" in found else "")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def _interval(found: dict[str, float | None]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    app()
