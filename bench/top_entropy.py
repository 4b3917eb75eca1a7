"""How often the gate decides otherwise when it knows the K likeliest tokens only, as behind two servers.

    python bench/top_entropy.py --json bench/results/top_entropy.json

SmolLM2-135M and the small base of its family write, greedily and sampled; at each token the rolling mean of the exact
entropy (float64, whole vocabulary) is compared with that of the estimate and of its bounds. Minutes on an idle core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import typer

from bench.family.members import load_members
from trimtab.compare.prompts import read_prompts, take_evenly
from trimtab.compare.provenance import load_average, provenance
from trimtab.decoding.entropy_gate import GateSettings, rolling_means
from trimtab.decoding.top_entropy import entropy_range

PROMPTS = Path(__file__).parent / "data" / "spec_bench_60.jsonl"
KNOWN = (5, 20, 50, 200)
THRESHOLDS = (1.0, 2.0, 3.0, 4.0, 5.0)


def measure(prompts: int, tokens: int) -> list[dict[str, Any]]:
    """A row for each model and K."""
    models, tokenizer = load_members("base", "large")
    asked = [prompt.text for prompt in take_evenly(read_prompts(PROMPTS), prompts)]
    return [row for name, model in models.items() for row in _rows(name, _texts(model, tokenizer, asked, tokens))]


Texts = list[tuple[list[float], list[list[float]], int]]
"""Of each text: bits, the likeliest tokens' log-probabilities, vocabulary."""


def _texts(model: Any, tokenizer: Any, prompts: list[str], tokens: int) -> Texts:
    found = []
    for sampled in (False, True):
        torch.manual_seed(0)
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids[:, -256:]
            with torch.no_grad():
                text = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=sampled, pad_token_id=0
                )
                log_p = model(text).logits[0, ids.shape[1] - 1 : -1].double().log_softmax(-1)
            bits = -(log_p.exp() * log_p).sum(-1) / np.log(2)
            found.append((bits.tolist(), log_p.topk(max(KNOWN)).values.tolist(), log_p.shape[1]))
    return found


def _rows(name: str, texts: Texts) -> list[dict[str, Any]]:
    gate, rows = GateSettings(1.0), []
    for known in KNOWN:
        errors: list[float] = []
        means: dict[str, list[float]] = {"exact": [], "low": [], "estimate": [], "high": []}
        for bits, tops, width in texts:
            ranges = [entropy_range(top[:known], width) for top in tops]
            errors += [found.estimate - exact for found, exact in zip(ranges, bits, strict=True)]
            means["exact"] += rolling_means(bits, gate)
            for bound in ("low", "estimate", "high"):
                means[bound] += rolling_means([getattr(found, bound) for found in ranges], gate)
        series = {bound: np.array(values) for bound, values in means.items()}
        at = []
        for threshold in THRESHOLDS:
            above = {bound: values > threshold for bound, values in series.items()}
            at.append(
                {
                    "threshold": threshold,
                    "above": round(float(above["exact"].mean()), 4),
                    "differs": round(float((above["exact"] != above["estimate"]).mean()), 4),
                    "uncertain": round(float((above["low"] != above["high"]).mean()), 4),
                }
            )
        rows.append(
            {
                "model": name,
                "known": known,
                "tokens": len(errors),
                "mean_bits": round(float(np.mean([bit for bits, _, _ in texts for bit in bits])), 3),
                "error": {
                    "mean": round(float(np.mean(errors)), 4),
                    "mean_absolute": round(float(np.abs(errors).mean()), 4),
                    "p95_absolute": round(float(np.percentile(np.abs(errors), 95)), 4),
                },
                "gate": at,
            }
        )
    return rows


def main(
    prompts: Annotated[int, typer.Option(help="Of Spec-Bench.")] = 12,
    tokens: Annotated[int, typer.Option(help="To write for each.")] = 64,
    out: Annotated[Path | None, typer.Option("--json", help="Where to write.")] = None,
) -> None:
    """Print a row for each model and K."""
    rows = measure(prompts, tokens)
    for row in rows:
        print(json.dumps(row))
    if out is not None:
        result = {"provenance": provenance(), "load_average": load_average(), "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
