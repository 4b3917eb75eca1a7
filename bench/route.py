"""`trimtab route` beside the large model's server alone: tokens per second, and what a hand-over takes.

    python bench/route.py --large URL --small URL --proxy URL --json bench/results/route.json

The three servers run already. Each round asks every arm for the same prompts, one after the other, in an order that
turns; medians are over requests. Prefix caches are warm after the first round, which is not counted.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import typer

from trimtab.compare.provenance import load_average, provenance

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Dear Sir or Madam,",
    "In 1969, the first",
    "Water boils at",
)


def ask(url: str, prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    """Seconds to the first token and to the last, and what the proxy says of its turns."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True, **more}
    begin, first, said = time.perf_counter(), 0.0, None
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - begin
                said = json.loads(line.removeprefix("data: ")).get("trimtab", said)
    return {"seconds": time.perf_counter() - begin, "first": first, "turns": said}


def hand_overs(url: str) -> dict[str, float]:
    """Count and seconds so far, by the model that took over."""
    page = httpx.get(f"{url}/metrics", timeout=60).text
    name = "trimtab:route_hand_over_seconds_"
    lines = [line.removeprefix(name) for line in page.splitlines() if line.startswith((f"{name}sum", f"{name}count"))]
    return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines)}


def main(
    large: Annotated[str, typer.Option(help="URL of the large model's server.")],
    small: Annotated[str, typer.Option(help="URL of the small model's server.")],
    proxy: Annotated[str, typer.Option(help="URL of `trimtab route`.")],
    thresholds: Annotated[list[float], typer.Option("--threshold", help="Bits, several times.")],
    prompts: Annotated[int, typer.Option(help="Of the six.")] = 6,
    rounds: Annotated[int, typer.Option(help="Besides the first.")] = 3,
    tokens: Annotated[int, typer.Option(help="For each prompt.")] = 32,
    out: Annotated[Path | None, typer.Option("--json", help="Where to write.")] = None,
) -> None:
    """Print a row for each arm."""
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        "large server": (large, {}),
        "large server, 20 logprobs": (large, {"logprobs": 20}),
        "small server": (small, {}),
        "proxy, large only": (proxy, {"vllm_xargs": {"trimtab_threshold": 0.0, "trimtab_start": "large"}}),
        "proxy, small only": (proxy, {"vllm_xargs": {"trimtab_threshold": 1e9}}),
    }
    for threshold in thresholds:
        arms[f"proxy, threshold {threshold:g}"] = (proxy, {"vllm_xargs": {"trimtab_threshold": threshold}})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    before = hand_overs(proxy)
    for turn in range(rounds + 1):
        order = list(arms)[turn % len(arms) :] + list(arms)[: turn % len(arms)]
        for prompt in PROMPTS[:prompts]:
            for name in order:
                url, more = arms[name]
                result = ask(url, prompt, tokens, **more)
                if turn:
                    found[name].append(result)
    after = hand_overs(proxy)
    rows = []
    for name, results in found.items():
        turns = [result["turns"] for result in results if result["turns"]]
        rows.append(
            {
                "arm": name,
                "requests": len(results),
                "tokens_per_second": round(statistics.median(tokens / result["seconds"] for result in results), 2),
                "first_token_ms": round(1000 * statistics.median(result["first"] for result in results), 1),
                "large_share": round(statistics.mean(turn["large_share"] for turn in turns), 3) if turns else None,
                "switches": round(statistics.mean(turn["switches"] for turn in turns), 2) if turns else None,
            }
        )
    taken = {key: value - before.get(key, 0.0) for key, value in after.items()}
    mean_ms = {
        to: round(1000 * taken[f'sum{{to="{to}"}}'] / count, 1)
        for to in ("small", "large")
        if (count := taken.get(f'count{{to="{to}"}}'))
    }
    for row in [*rows, {"hand_over_mean_ms": mean_ms}]:
        print(json.dumps(row))
    if out is not None:
        result = {"provenance": provenance(), "load_average": load_average(), "rows": rows, "hand_over_ms": mean_ms}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
