"""What it costs a vLLM engine that trimtab is installed and not asked for: tokens per second with and without.

    python bench/vllm_idle.py --json bench/results/vllm_idle.json

Two engines in processes of their own, one told to load no plugins (`VLLM_PLUGINS=""`). They take turns at the same
batches, the other one waiting, so that what else the machine does falls on both; which is first alternates, and each
start of a pair swaps them. The ratio's interval is a bootstrap over batches. Needs trimtab installed (its entry point)
and an otherwise idle machine; five minutes on two cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer

from bench.vllm_engines import OPTIONS, Engine
from trimtab import InputError
from trimtab.compare.bootstrap import rate_ratio
from trimtab.compare.prompts import read_prompts
from trimtab.compare.provenance import load_average, provenance

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("with", "without")


def main(
    model: Annotated[str, typer.Option(help="Directory or id of a model that trimtab is not asked for.")] = "",
    starts: Annotated[int, typer.Option(help="How often both engines are started.")] = 2,
    rounds: Annotated[int, typer.Option(help="Batches for each engine of a start.")] = 10,
    tokens: Annotated[int, typer.Option(help="New tokens a request.")] = 48,
    output: Annotated[Path | None, typer.Option("--json", help="Where the result goes.")] = None,
) -> None:
    """Measure the idle cost."""
    if not [point for point in entry_points(group="vllm.general_plugins") if point.name == "trimtab"]:
        raise InputError("trimtab is not installed here, so that vLLM cannot load it: pip install -e .")
    if not model:
        from trimtab.integrations.transformers.embedded import embedded_directory

        model = str(embedded_directory("smollm2-135m"))
    # short ones: most of the time is decoding, step by step, which is where a cost would be
    texts = sorted((prompt.text for prompt in read_prompts(ROOT / "bench/data/spec_bench_60.jsonl")), key=len)
    batches = [texts[first : first + 8] for first in range(0, 8 * 4, 8)]
    measured: dict[str, list[tuple[int, float]]] = {arm: [] for arm in ARMS}
    runners = {}
    load = load_average()
    for start in range(starts):
        order = ARMS if start % 2 == 0 else ARMS[::-1]
        with tempfile.TemporaryDirectory() as folder:
            engines = {
                arm: Engine(arm, Path(folder), {"model": model}, {} if arm == "with" else {"VLLM_PLUGINS": ""})
                for arm in order
            }
            for engine in engines.values():
                engine.ready()
            if (engines["with"].plugin, engines["without"].plugin) != (True, False):
                raise InputError("the plugin was not loaded by the one engine alone: is VLLM_PLUGINS set?")
            runners = {arm: "V2" if engine.v2 else "V1" for arm, engine in engines.items()}
            for arm in order:
                engines[arm].generate(batches[0], max_tokens=tokens)  # warm
            for turn in range(rounds):
                for arm in order if turn % 2 == 0 else order[::-1]:
                    done = engines[arm].generate(batches[turn % len(batches)], max_tokens=tokens)
                    measured[arm].append((done.new_tokens, done.seconds))
                rates = [measured[arm][-1][0] / measured[arm][-1][1] for arm in ARMS]
                print(f"{start + 1}.{turn + 1}  with {rates[0]:.1f}  without {rates[1]:.1f} tokens/s", file=sys.stderr)
            for engine in engines.values():
                engine.stop()
    columns = {arm: list(zip(*values, strict=True)) for arm, values in measured.items()}
    ratio = rate_ratio(*columns["with"], *columns["without"])
    record = {
        "ratio": ratio.as_dict(),
        "tokens_per_second": {arm: sum(columns[arm][0]) / sum(columns[arm][1]) for arm in ARMS},
        "rounds": {arm: [list(value) for value in values] for arm, values in measured.items()},
        "runner": runners,
        "options": OPTIONS | {"starts": starts, "rounds": rounds, "tokens": tokens, "batch": 8},
        "load_average": {"before": load, "after": load_average()},
        "provenance": provenance(),
    }
    print(f"with / without: {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
    if output is not None:
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
