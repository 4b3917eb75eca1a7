"""What the methods give inside vLLM: tokens per second and passes, engines taking turns at the same batches.

    python bench/vllm_methods.py --json bench/results/vllm_methods.json
    python bench/vllm_methods.py --only fusion --rounds 1
    python bench/vllm_methods.py --only entropy-adaptive --only quantized --large DIRECTORY --small DIRECTORY

`entropy-adaptive`: several thresholds against the large model alone and against plain speculative decoding with the
same small one. `quantized`: float32, bfloat16 and low-bit weights, each with and without n-gram drafts, and low-bit
weights as the draft model of the float32 ones, which is lossless. `fusion`: the composite model against the same fusion
by a logits processor whose small models are transformers'. `steer`: the contrast and negative prompts against the
expert alone. The models are the family's, in batches of several prompts; with `--large` and `--small` the first two
parts take that pair of chat models instead, in bfloat16, on HumanEval's first problems, one at a time.

Each arm is an engine in a process of its own, or a setting of one; all arms of a part run a batch before the next one,
in rotating order. Ratios are of sums over batches, their intervals a bootstrap over batches. Needs trimtab installed
(its entry point), vLLM, 2 to 3 GiB for each engine (`quantized` has ten: `--arms` takes some), and an otherwise idle
machine.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.family.members import Member, load_members
from bench.family.tasks import items
from bench.vllm_engines import FUSION_MODELS, OPTIONS, Batch, Engine
from trimtab import InputError
from trimtab.compare.bootstrap import rate_ratio
from trimtab.compare.prompts import read_prompts, take_evenly
from trimtab.compare.provenance import load_average, provenance
from trimtab.compare.schedule import rotated
from trimtab.integrations.vllm.composed_directory import compose_fusion, compose_steer
from trimtab.tasks import humaneval

HERE = Path(__file__).parent
THRESHOLDS = (0.5, 1.0, 2.0, 3.0)
PAIR_THRESHOLDS = (0.1, 0.3, 0.45, 1.0)
PAIR_PROBLEMS = 6
TO_ITS_END: dict[str, Any] = {"ignore_eos": False, "stop": ["```"]}
"""A program ends: what a model is made to write behind it says nothing of its entropy on programs."""
NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
DRAFTS = 6
"""Tokens that a draft model writes ahead."""
NEGATIVES = (1, 4)
"""Of each request."""


@dataclass(frozen=True)
class Setup:
    """How an engine is started: options of `vllm.LLM`, its environment, and what its workers count."""

    options: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    rpc: str | None = None


@dataclass(frozen=True)
class Part:
    """Arms that are compared with each other.

    Attributes:
        engines: by name.
        arms: by name, the engine and options of its requests; the first one is what the others are compared with.
        batches: of prompts.
        params: of every request.
    """

    engines: dict[str, Setup]
    arms: dict[str, tuple[str, dict[str, Any]]]
    batches: list[list[str]]
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One batch by one arm."""

    arm: str
    round: int
    batch: int
    seconds: float
    tokens: int
    counts: dict[str, float]
    same_text: int


def main(
    only: Annotated[list[str] | None, typer.Option(help="Parts to run, by default all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each batch is run.")] = 2,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens a request.")] = 48,
    arms: Annotated[
        str, typer.Option(help="Some of a part's arms, with semicolons between; the first always runs.")
    ] = "",
    large: Annotated[Path | None, typer.Option(help="A model's directory, with --small.")] = None,
    small: Annotated[Path | None, typer.Option(help="The small model's, of the same tokenizer.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
) -> None:
    """Measure the methods inside vLLM."""
    if (large is None) != (small is None):
        raise InputError("--large and --small are a pair: give both or neither")
    parts = dict(PARTS)
    if large is not None and small is not None:
        parts["entropy-adaptive"] = partial(_adaptive_pair, large, small)
        parts["quantized"] = partial(_quantized_pair, large)
    for name in only or ():
        if name not in PARTS:
            raise InputError(f"--only is {name!r}: give of {', '.join(PARTS)}")
    record: dict[str, Any] = {
        "provenance": provenance(),
        "options": OPTIONS | {"rounds": rounds, "tokens": tokens},
        "load_average": {"before": load_average()},
        "parts": {},
    }
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        for name in only or PARTS:
            part = parts[name](Path(folder))
            rows = _run(name, _some(part, arms), rounds, tokens)
            figures = {arm: _figures(arm, rows) for arm in dict.fromkeys(row.arm for row in rows)}
            record["parts"][name] = {"figures": figures, "rows": [asdict(row) for row in rows]}
            console.print(_shown(name, figures))
    record["load_average"]["after"] = load_average()
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# -- the parts ---------------------------------------------------------------------------------------------------------


def _family(folder: Path, *names: Member) -> dict[Member, Path]:
    models, tokenizer = load_members(*names)
    found = {name: folder / name for name in names}
    for name, path in found.items():
        if not path.exists():
            models[name].save_pretrained(path)
            tokenizer.save_pretrained(path)
    return found


def _short_prompts() -> list[list[str]]:
    texts = sorted((prompt.text for prompt in read_prompts(HERE / "data" / "spec_bench_60.jsonl")), key=len)
    return [texts[first : first + 4] for first in range(4, 20, 4)]


def _problems(directory: Path) -> list[list[str]]:
    """HumanEval's first ones in the model's chat template, one in a batch."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = humaneval.problems(HERE / "data" / "humaneval_100.jsonl")[:PAIR_PROBLEMS]
    return [[tokenizer.decode(problem.token_ids(tokenizer))] for problem in found]


def _entropy_adaptive(folder: Path) -> Part:
    where = _family(folder, "large", "base")
    return _adaptive({"model": str(where["large"])}, where["base"], THRESHOLDS, _short_prompts())


def _adaptive_pair(large: Path, small: Path, folder: Path) -> Part:
    part = _adaptive({"model": str(large), "dtype": "bfloat16"}, small, PAIR_THRESHOLDS, _problems(large))
    return replace(part, params=TO_ITS_END)


def _adaptive(large: dict[str, Any], small: Path, thresholds: Sequence[float], batches: list[list[str]]) -> Part:
    drafting = {"method": "draft_model", "model": str(small), "num_speculative_tokens": DRAFTS}
    adaptive = Setup(
        large
        | {
            "worker_cls": "trimtab.integrations.vllm.entropy_adaptive.worker.Worker",
            "logits_processors": ["trimtab.integrations.vllm.entropy_adaptive.requests:EntropyAdaptiveRequests"],
            "speculative_config": drafting | {"draft_sample_method": "probabilistic"},
            "additional_config": {"trimtab": {"entropy_adaptive": {"threshold": thresholds[0]}}},
        },
        rpc="entropy_adaptive_counts",
    )
    engines = {"large": Setup(large), "small": Setup(large | {"model": str(small)}), "adaptive": adaptive}
    engines["speculative"] = Setup(large | {"speculative_config": drafting})
    arms: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ("large", "small", "speculative")}
    for threshold in thresholds:
        arms[f"threshold {threshold}"] = ("adaptive", {"extra_args": {"trimtab_threshold": threshold}})
    return Part(engines, arms, batches)


def _quantized(folder: Path) -> Part:
    model = {"model": str(_family(folder, "large")["large"])}
    prompts = take_evenly(read_prompts(HERE / "data" / "spec_bench_60.jsonl"), 24)
    batches = [[prompt.text for prompt in prompts[first : first + 4]] for first in range(0, 24, 4)]
    return _low_bit({"float32": model, "bfloat16": model | {"dtype": "bfloat16"}}, batches)


def _quantized_pair(model: Path, folder: Path) -> Part:
    part = _low_bit({"bfloat16": {"model": str(model), "dtype": "bfloat16"}}, _problems(model))
    return replace(part, params=TO_ITS_END)


def _low_bit(full: Mapping[str, dict[str, Any]], batches: list[list[str]]) -> Part:
    """Arms of weights in full precision, by name, and of the first of them in low bits."""
    model = next(iter(full.values()))
    low_bit = {low: model | {"quantization": f"trimtab-{low}"} for low in ("w8a8", "w8a16")}
    weights = {**full, **low_bit}
    engines = {name: Setup(options) for name, options in weights.items()}
    engines |= {f"{name}, n-gram": Setup(options | {"speculative_config": NGRAM}) for name, options in weights.items()}
    for low in low_bit:
        drafting = {"method": "draft_model", "quantization": f"trimtab-{low}", "num_speculative_tokens": DRAFTS}
        engines[f"lossless, {low} drafts"] = Setup(model | {"speculative_config": drafting | model})
    return Part(engines, {name: (name, {}) for name in engines}, batches)


def _fusion(folder: Path) -> Part:
    where = _family(folder, "large", "base", "extract", "record")
    composed = folder / "fusion"
    compose_fusion(composed, where["large"], where["base"], [where["extract"], where["record"]], alpha=None)
    small = os.pathsep.join(str(where[name]) for name in ("base", "extract", "record"))
    processor = {"model": str(where["large"]), "logits_processors": ["bench.vllm_fusion_processor:FusionProcessor"]}
    engines = {
        "logits processor": Setup(processor, {FUSION_MODELS: small, "TRIMTAB_NATIVE": "0"}),
        "logits processor, native CPU step": Setup(processor, {FUSION_MODELS: small}),
        "composite model": Setup({"model": str(composed)}),
        "large model alone": Setup({"model": str(where["large"])}),
    }
    texts = [items(task, 8, "test", seed=7) for task in ("extract", "record")]
    batches = [[item.prompt for item in part] for part in texts]
    return Part(engines, {name: (name, {}) for name in engines}, batches)


def _steer(folder: Path) -> Part:
    where = _family(folder, "large", "base")
    composed = folder / "steer"
    compose_steer(composed, where["large"], where["base"], gamma=0.3)
    engines = {"expert alone": Setup({"model": str(where["large"])}), "steer": Setup({"model": str(composed)})}
    arms: dict[str, tuple[str, dict[str, Any]]] = {"expert alone": ("expert alone", {}), "contrast": ("steer", {})}
    # as long as the prompts, so that reading one costs what reading a prompt does
    negatives = [item.prompt for item in items("record", NEGATIVES[-1], "test", seed=8)]
    for count in NEGATIVES:
        asked = {"trimtab_negatives": negatives[:count], "trimtab_balanced": True, "trimtab_plausibility": 0.1}
        arms[f"contrast, negatives: {count}"] = ("steer", {"extra_args": asked})
    return Part(engines, arms, [[item.prompt for item in items("record", 8, "test", seed=seed)] for seed in (7, 9)])


PARTS: dict[str, Callable[[Path], Part]] = {
    "entropy-adaptive": _entropy_adaptive,
    "quantized": _quantized,
    "fusion": _fusion,
    "steer": _steer,
}


def _some(part: Part, names: str) -> Part:
    """Those arms, the first one among them, and the engines that they need."""
    chosen = [name.strip() for name in names.split(";") if name.strip()]
    if not chosen:
        return part
    first = next(iter(part.arms))
    arms = {name: arm for name, arm in part.arms.items() if name == first or name in chosen}
    used = {engine for engine, _ in arms.values()}
    return replace(part, engines={name: setup for name, setup in part.engines.items() if name in used}, arms=arms)


# -- measuring ---------------------------------------------------------------------------------------------------------


def _run(name: str, part: Part, rounds: int, tokens: int) -> list[Row]:
    rows: list[Row] = []
    engines: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for index, (engine, setup) in enumerate(part.engines.items()):
                engines[engine] = Engine(f"{index}", Path(folder), setup.options, setup.env, setup.rpc)
                if index:  # two at a time, so that what one waits for does not keep a core from the other
                    _warm(list(engines.values())[index - 1], part)
            _warm(list(engines.values())[-1], part)
            turns = [(turn, batch) for turn in range(rounds) for batch in range(len(part.batches))]
            for index, (turn, batch) in enumerate(tqdm(turns, desc=name, unit="batch")):
                done: dict[str, Batch] = {}
                for arm in rotated(list(part.arms), index):
                    engine, params = part.arms[arm]
                    done[arm] = engines[engine].generate(
                        part.batches[batch], max_tokens=tokens, **part.params, **params
                    )
                first = next(iter(part.arms))
                for arm, made in done.items():
                    pairs = zip(made.tokens, done[first].tokens, strict=True)
                    same = sum(own == other for own, other in pairs)
                    rows.append(Row(arm, turn, batch, made.seconds, made.new_tokens, made.counts, same))
        finally:
            for started in engines.values():
                started.stop()
    order = list(part.arms)
    return sorted(rows, key=lambda row: (order.index(row.arm), row.round, row.batch))


def _warm(engine: Engine, part: Part) -> None:
    engine.ready()
    engine.generate(part.batches[0], max_tokens=4)


def _figures(arm: str, rows: Sequence[Row]) -> dict[str, Any]:
    own = [row for row in rows if row.arm == arm]
    base = [row for row in rows if row.arm == rows[0].arm]

    def columns(part: Sequence[Row]) -> tuple[list[float], list[float]]:
        return [float(row.tokens) for row in part], [row.seconds for row in part]

    rates = [row.tokens / row.seconds for row in own]
    found: dict[str, Any] = {
        "tokens_per_second": {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)},
        "ratio": rate_ratio(*columns(own), *columns(base)).as_dict(),
        "same_text": sum(row.same_text for row in own),
    }
    counts: dict[str, float] = {}
    for row in own:
        for name, value in row.counts.items():
            counts[name] = counts.get(name, 0.0) + value
    return found | _passes(counts)


def _passes(counts: Mapping[str, float]) -> dict[str, float]:
    """Of the large model for each token, and who wrote the tokens."""
    if "passes" in counts:
        written = counts["small"] + counts["large"]
        return {"passes_per_token": counts["passes"] / written, "large_share": counts["large"] / written}
    if counts.get("drafts"):
        length = 1 + counts["accepted_tokens"] / counts["drafts"]
        # only of windows: a prompt's first token, and those without a draft, are a pass each
        return {"acceptance_length": length}
    return {}


def _shown(name: str, figures: Mapping[str, dict[str, Any]]) -> Table:
    table = Table("", "tokens/s", "x first", "same text", "passes a token", "tokens a window", title=name)
    for arm, row in figures.items():
        ratio = row["ratio"]
        between = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        table.add_row(
            arm,
            f"{row['tokens_per_second']['median']:.1f}",
            f"{ratio['value']:.2f}{between}",
            str(row["same_text"]),
            f"{row['passes_per_token']:.2f}" if "passes_per_token" in row else "",
            f"{row['acceptance_length']:.2f}" if "acceptance_length" in row else "",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
