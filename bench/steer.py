"""Diversity and coherence of data sets that STEER samples, against the expert sampled plainly.

    python bench/steer.py --json bench/results/steer.json --plot bench/results/steer.png

The expert is SmolLM2-135M fine-tuned on questions of GSM8K (bench/family), its base SmolLM2-135M. Coherence is the
perplexity that an unrelated model (Gemma 3 270M) gives the texts: lower is more coherent, but only down to that of
real questions. Plain sampling gets a curve too, over temperatures: being more diverse at a higher perplexity is no
merit, being more diverse at the same one is. Data sets are kept in --folder, and a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
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

import trimtab
from bench.family.make import QUESTIONS
from bench.family.members import load_members
from trimtab.ability.sentence_encoder import SentenceEncoder
from trimtab.compare.provenance import provenance
from trimtab.synthesis import Settings, Synthesizer
from trimtab.synthesis.measures import measure
from trimtab.synthesis.perplexity import perplexity
from trimtab.tasks.problem import records

TEMPERATURES = (0.7, 0.85, 1.0, 1.2, 1.4)
GAMMAS = (0.0, 0.2, 0.5)
ETAS = (0.2, 0.6, 1.0)
SEEDS = 100
REFERENCE = slice(7000, 7200)

app = typer.Typer(add_completion=False)


def arms(common: dict[str, Any]) -> dict[str, Settings]:
    """Plain sampling over temperatures, the same among plausible tokens (min-p), which is what trimtab's form gains
    without steering; the paper's form over eta, and trimtab's form over gamma and eta."""
    unsteered: dict[str, Any] = {"gamma": 0.0, "eta": 0.0}
    found = {f"plain T={t:g}": Settings(**common, **unsteered, plausibility=None, temperature=t) for t in TEMPERATURES}
    found |= {f"plausible T={t:g}": Settings(**common, **unsteered, temperature=t) for t in (1.0, 1.2, 1.4)}
    for eta in (0.2, 0.6):
        found[f"paper gamma=0.2 eta={eta:g}"] = Settings(
            **common, gamma=0.2, eta=eta, balanced=False, plausibility=None
        )
    for gamma in GAMMAS:
        for eta in ETAS:
            found[f"balanced gamma={gamma:g} eta={eta:g}"] = Settings(**common, gamma=gamma, eta=eta)
    return found


@app.command()
def main(
    count: Annotated[int, typer.Option(help="Texts of each data set.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Texts generated together.")] = 25,
    negative_examples: Annotated[int, typer.Option(help="Texts in a negative prompt.")] = 5,
    gsm8k: Annotated[Path, typer.Option(help="The training split.")] = Path("bench/data/gsm8k_train.jsonl"),
    folder: Annotated[Path, typer.Option(help="Keeps the data sets.")] = Path("bench/results/steer"),
    judge: Annotated[str, typer.Option(help="The model whose perplexity stands for coherence.")] = "gemma3-270m",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw diversity against perplexity here.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
) -> None:
    """Sample a data set in every arm, then measure all of them."""
    if threads:
        torch.set_num_threads(threads)
    questions = [record["question"] for record in records(gsm8k)]
    seeds, reference = [{"text": text} for text in questions[:SEEDS]], questions[REFERENCE]
    assert SEEDS <= QUESTIONS <= REFERENCE.start
    common = {"batch_size": batch_size, "negative_examples": negative_examples, "max_new_tokens": 80, "stop": ("\n",)}
    settings = arms(common)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in settings if not _file(folder, name).exists()]
    if missing:
        members, tokenizer = load_members("large", "large-questions")
        # as fast again, and the arms share it
        expert, base = (members[name].to(torch.bfloat16) for name in ("large-questions", "large"))
    for name in tqdm(missing, unit="data set"):
        start = time.perf_counter()
        made = Synthesizer(expert, base, tokenizer, settings[name]).run(
            seeds, count, template="Problem:", reference=reference
        )
        record = {"texts": [record.text for record in made], "seconds": time.perf_counter() - start}
        _file(folder, name).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    model, judging = trimtab.load(judge, dtype="bfloat16")
    encoder = SentenceEncoder()
    figures: dict[str, Any] = {}
    real: dict[str, Any] = {}
    for name in tqdm(settings, desc="measuring", unit="data set"):
        file = _file(folder, name)
        record = json.loads(file.read_text(encoding="utf-8"))
        if "measures" not in record or not real:
            # the judge on its own: it would read the reference again for every arm
            found = measure(record["texts"], reference, encoder=encoder)
            record["measures"] = {one.name: one.generated for one in found}
            record["measures"]["perplexity"] = perplexity(record["texts"], model, judging)
            file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            real = real or {one.name: one.reference for one in found}
        figures[name] = {"seconds": record["seconds"]} | record["measures"]
    real["perplexity"] = perplexity(reference, model, judging)
    if json_file is not None:
        shown = {name: asdict(each) for name, each in settings.items()}
        result = {"provenance": provenance(), "settings": shown, "reference": real, "arms": figures}
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        from bench.steer_plot import draw  # matplotlib takes a second and is not always wanted

        draw(figures, real, plot)
    _show(figures | {"real questions": real})


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '_').replace('=', '_')}.json"


def _show(figures: dict[str, Any]) -> None:
    columns = ("perplexity", "distinct_3", "diversity", "self_bleu", "pairwise_cosine", "auroc", "duplicates", "words")
    table = Table(title="data sets of questions")
    for heading in ("arm", *columns):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, found in figures.items():
        table.add_row(name, *("" if found.get(column) is None else f"{found[column]:.3f}" for column in columns))
    Console(width=None if sys.stdout.isatty() else 150, highlight=False).print(table)


if __name__ == "__main__":
    app()
