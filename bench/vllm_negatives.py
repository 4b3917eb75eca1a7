"""What STEER's negative prompts cost in vLLM: tokens per second of a batch with and without them.

    python bench/vllm_negatives.py STEER --json bench/results/vllm_negatives.json

STEER is a directory of `trimtab compose steer`. One engine; the arms take turns at the same batch, so that what else
the machine does falls on all of them. A ratio's interval is a bootstrap over rounds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer

from trimtab.compare.bootstrap import rate_ratio
from trimtab.compare.prompts import read_prompts
from trimtab.compare.provenance import load_average, provenance

ROOT = Path(__file__).resolve().parents[1]
BATCH = 8
COUNTS = (0, 1, 4)
OPTIONS: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": BATCH}


def main(
    model: Annotated[Path, typer.Argument(help="Directory of trimtab compose steer.")],
    rounds: Annotated[int, typer.Option(help="Batches for each arm.")] = 6,
    tokens: Annotated[int, typer.Option(help="New tokens a request.")] = 48,
    output: Annotated[Path | None, typer.Option("--json", help="Where the result goes.")] = None,
) -> None:
    """Measure it."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    load = load_average()
    # one negative holds all texts of the others and the prompt: as long as data sets make them
    texts = sorted((prompt.text for prompt in read_prompts(ROOT / "bench/data/spec_bench_60.jsonl")), key=len)[:BATCH]
    negative = "\n\n".join(texts)
    llm = LLM(str(model), enable_prefix_caching=False, additional_config=_settings(), **OPTIONS)
    length = len(llm.get_tokenizer().encode(negative))
    measured: dict[int, list[tuple[int, float]]] = {count: [] for count in COUNTS}
    for turn in range(rounds + 1):
        for count in COUNTS if turn % 2 else COUNTS[::-1]:
            asked = [{"trimtab_negatives": [f"{negative}\n\n{text}"] * count} if count else None for text in texts]
            params = [SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=a) for a in asked]
            begin = time.perf_counter()
            outputs = llm.generate(texts, params, use_tqdm=False)
            seconds = time.perf_counter() - begin
            if turn:  # the first is to get warm
                measured[count].append((sum(len(each.outputs[0].token_ids) for each in outputs), seconds))
                print(f"{turn}  {count} negatives  {measured[count][-1][0] / seconds:.1f} tokens/s", file=sys.stderr)
    columns = {count: list(zip(*values, strict=True)) for count, values in measured.items()}
    ratios = {count: rate_ratio(*columns[count], *columns[0]) for count in COUNTS[1:]}
    for count, ratio in ratios.items():
        print(f"{count} negatives / none: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")
    record = {
        "ratios": {str(count): ratio.as_dict() for count, ratio in ratios.items()},
        "tokens_per_second": {str(count): sum(each[0]) / sum(each[1]) for count, each in columns.items()},
        "rounds": {str(count): [list(value) for value in values] for count, values in measured.items()},
        "options": OPTIONS | {"rounds": rounds, "tokens": tokens, "batch": BATCH, "tokens_of_a_negative": length},
        "load_average": {"before": load, "after": load_average()},
        "provenance": provenance(),
    }
    if output is not None:
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _settings() -> dict[str, Any]:
    """Room for all negatives of the largest arm at once."""
    return {"trimtab": {"steer": {"negative_tokens": BATCH * max(COUNTS) * 512}}}


if __name__ == "__main__":
    typer.run(main)
