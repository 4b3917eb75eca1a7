"""Train the head that names what a prompt asks for, and measure it on sources that it was not trained on.

    python bench/temperature/train_head.py --json bench/results/temperature_head.json

Training: prompts from templates/. The penalty is chosen by cross-validation over templates. Held out: prompts written
by hand in other styles (held_out.jsonl, held_out_2.jsonl), the Spec-Bench prompts of bench/data, and files given by
--more ABILITY=FILE.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.temperature.held_out import by_hand, more, spec_bench
from bench.temperature.logistic import cross_validated
from bench.temperature.training_prompts import Labelled, training_prompts
from trimtab.ability.classifier import HEAD, features
from trimtab.ability.sentence_encoder import REQUIREMENT, SentenceEncoder
from trimtab.compare.provenance import provenance
from trimtab.decoding.temperature import ABILITIES
from trimtab.synthesis.logistic import Head, fit

app = typer.Typer(add_completion=False)


@app.command()
def main(
    per_ability: Annotated[int, typer.Option(help="Training prompts of each ability.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the training prompts.")] = 0,
    spec_bench_file: Annotated[Path | None, typer.Option("--spec-bench", help="All of Spec-Bench.")] = None,
    more_files: Annotated[list[str] | None, typer.Option("--more", help="ABILITY=FILE, another held-out file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the head, write it into the package, and print its accuracy on held-out sources."""
    torch.set_num_threads(threads)
    encoder = SentenceEncoder()
    made = training_prompts(per_ability, seed)
    vectors, labels = features(encoder, [item.prompt for item in made]), _labels(made)
    trials = cross_validated(vectors, labels, [item.group for item in made], len(ABILITIES))
    strength = min(trials, key=lambda value: trials[value][0])
    head = fit(vectors, labels, len(ABILITIES), strength)
    weights = {"weight": head.weight.float().contiguous(), "bias": head.bias.float().contiguous()}
    save_file(weights, HEAD, metadata={"abilities": ",".join(ABILITIES), "encoder": REQUIREMENT})

    elsewhere = [] if spec_bench_file is None else spec_bench(spec_bench_file)
    for text in more_files or []:
        ability, _, path = text.partition("=")
        elsewhere += more(Path(path), ability)
    results: dict[str, Any] = {
        "training": {"prompts": len(made), "groups": len({item.group for item in made}), "seed": seed},
        "penalty": strength,
        "cross_validation": {str(value): {"nll": nll, "accuracy": share} for value, (nll, share) in trials.items()},
        "held_out": measure(encoder, head, by_hand("held_out")),
        "held_out_2": measure(encoder, head, by_hand("held_out_2")),
        "development": measure(encoder, head, by_hand("development")),
        "spec_bench": measure(encoder, head, spec_bench()),
        "provenance": provenance(),
    }
    if elsewhere:
        results["elsewhere"] = measure(encoder, head, elsewhere)
    for name in ("held_out", "held_out_2", "development", "spec_bench", "elsewhere"):
        if name in results:
            _print(name, results[name])
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(encoder: SentenceEncoder, head: Head, items: list[Labelled]) -> dict[str, Any]:
    """Accuracy, also by source, and the confusion matrix: rows what was asked for, columns what was found."""
    logits, labels = head.logits(features(encoder, [item.prompt for item in items])), _labels(items)
    found = logits.argmax(-1)
    confusion = torch.zeros(len(ABILITIES), len(ABILITIES), dtype=torch.int64)
    confusion.index_put_((labels, found), torch.ones_like(labels), accumulate=True)
    right: Counter[str] = Counter()
    for item, hit in zip(items, (found == labels).tolist(), strict=True):
        right[item.group] += hit
    sizes = Counter(item.group for item in items)
    recalls = [float(row[index] / row.sum()) for index, row in enumerate(confusion) if row.sum()]
    return {
        "prompts": len(items),
        "accuracy": float((found == labels).double().mean()),
        "mean_recall": sum(recalls) / len(recalls),
        "nll": float(cross_entropy(logits, labels)),
        "mean_confidence": float(logits.softmax(-1).amax(-1).mean()),
        "by_source": {name: {"prompts": size, "accuracy": right[name] / size} for name, size in sizes.items()},
        "abilities": list(ABILITIES),
        "confusion": confusion.tolist(),
    }


def _labels(items: list[Labelled]) -> Tensor:
    return torch.tensor([ABILITIES.index(item.ability) for item in items])


def _print(name: str, result: dict[str, Any]) -> None:
    print(f"{name}: {result['prompts']} prompts, accuracy {result['accuracy']:.3f}, nll {result['nll']:.3f}")
    for source, part in result["by_source"].items():
        print(f"  {source}: {part['accuracy']:.3f} of {part['prompts']}")
    for ability, row in zip(ABILITIES, result["confusion"], strict=True):
        print(f"    {ability:<4}", *(f"{count:4}" for count in row))


if __name__ == "__main__":
    app()
