"""What each way to quantise costs in quality: the comparison that the defaults were chosen by.

    python bench/low_bit_schemes.py --json bench/results/low_bit_schemes.json

Agreement: the full-precision model's greedy text is fed to the quantised one, and its argmax compared at every token.
Perplexity: of natural text, relative to full precision. Both on Spec-Bench prompts. SmoothQuant (smoothing.py) is
calibrated on prompts of another file, the demo's.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedModel

import trimtab
from bench.arms import make_arms, vars_of
from bench.low_bit_quality import perplexity
from bench.prompts import encode
from bench.quality import agreeing
from bench.report import interval_text, summarize_agreement
from trimtab import LowBitConfig, LowBitModel
from trimtab.compare.prompts import read_prompts, take_evenly
from trimtab.compare.provenance import provenance
from trimtab.kernels.smoothing import smooth_

HERE = Path(__file__).parent

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to quantise: a format, and how far activations are smoothed into the weights first."""

    config: LowBitConfig
    smoothing: float = 0.0


SCHEMES = {
    "W8A8": Scheme(LowBitConfig(activation_bits=8, outliers=0)),
    "W8A8, SmoothQuant 0.5 (the paper's)": Scheme(LowBitConfig(activation_bits=8, outliers=0), 0.5),
    "W8A8, SmoothQuant 0.7": Scheme(LowBitConfig(activation_bits=8, outliers=0), 0.7),
    "W8A8, 32 outliers": Scheme(LowBitConfig(activation_bits=8, outliers=32)),
    "W8A8, 64 outliers": Scheme(LowBitConfig(activation_bits=8, outliers=64)),
    "W8A16": Scheme(LowBitConfig(activation_bits=16, outliers=0)),
    "W8A16, 32 outliers (default)": Scheme(LowBitConfig()),
    "W8A16, 32 outliers, 8-bit head": Scheme(LowBitConfig(head=True)),
    "W4A16, 32 outliers": Scheme(LowBitConfig(bits=4)),
}


@app.command()
def main(
    model: Annotated[str, typer.Option(help="What trimtab.load takes.")] = "smollm2-135m",
    prompts: Annotated[Path, typer.Option(help="Measured on.")] = HERE / "data" / "spec_bench_60.jsonl",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts, evenly over the groups.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    json_out: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
) -> None:
    """Compare ways to quantise."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    about = provenance()
    loaded, tokenizer = trimtab.load(model)
    chosen = take_evenly(read_prompts(prompts), limit)
    ids = [encode(tokenizer, prompt.text) for prompt in chosen]
    plain = make_arms(["full"], loaded, max_new_tokens)["full"]
    greedy = [plain.decode(prompt).ids for prompt in tqdm(ids, desc="greedy text", unit="prompt")]
    calibration = [encode(tokenizer, prompt.text) for prompt in read_prompts(HERE / "demo_prompts.jsonl")]

    results: dict[str, Any] = {}
    shown = Table("scheme", "same next token", "perplexity, change in %", title=f"{model}, {len(ids)} prompts")
    for name, scheme in SCHEMES.items():
        base = smoothed(loaded, scheme.smoothing, calibration) if scheme.smoothing else loaded
        low = LowBitModel.quantize(base, scheme.config).forward
        counts = [
            (prompt.group, agreeing(low, loaded.device, text, new), len(new))
            for prompt, text, new in zip(tqdm(chosen, desc=name, unit="prompt", leave=False), ids, greedy, strict=True)
        ]
        agreement = list(summarize_agreement(counts).values())[-1]
        change = perplexity(low, loaded, tokenizer, chosen)
        results[name] = {"config": vars_of(scheme.config), "smoothing": scheme.smoothing}
        results[name] |= {"argmax_agreement": agreement, "perplexity": change}
        shown.add_row(name, interval_text(agreement, 4), interval_text(change["change_percent"]))
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        json_out.write_text(json.dumps({"provenance": about, "model": model, "schemes": results}, indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(shown)


def smoothed(model: PreTrainedModel, alpha: float, texts: list[list[int]]) -> PreTrainedModel:
    """A copy that computes the same function, the outliers of its activations moved into its weights."""
    model = copy.deepcopy(model)
    smooth_(model, texts, alpha)
    return model


if __name__ == "__main__":
    app()
