"""Classifier-free guidance in every decoding mode of `generate`: transformers' own processor and trimtab's.

    python bench/processor_modes.py --json bench/results/processor_modes.json

Both compute `s log p(. | prompt) - (s - 1) log p(. | negative)`, trimtab as `Steer(gamma=0, eta=s - 1, balanced=True)`.
Each is held against the same formula without any cache, one row at a time, in the same mode and from the same seed. The
negative is the prompt's last token (transformers' default) or a prompt of its own.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    # Run as a script: the checkout stands in for this directory, whose modules are read as `bench.*`.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    set_seed,
)

import trimtab
from bench.models import perturbed
from bench.naive import NaiveRows, log_probs
from trimtab import Steer
from trimtab.compare.provenance import provenance

PROMPTS = [
    "The cat sat on the mat. The dog sat on the mat. The cat",
    "Three rivers of Europe are the Rhine, the",
    "Once upon a time",
]
NEGATIVE = "A dull and joyless text:"

MODES: dict[str, tuple[int, dict[str, Any]]] = {
    "greedy": (1, {"do_sample": False}),
    "greedy batch": (3, {"do_sample": False}),
    "sampling batch": (3, {"do_sample": True}),
    "beams": (1, {"do_sample": False, "num_beams": 4}),
    "beams batch": (3, {"do_sample": False, "num_beams": 3}),
    "beam sampling": (1, {"do_sample": True, "num_beams": 3}),
    "return sequences": (3, {"do_sample": True, "num_return_sequences": 3}),
    "prompt lookup": (1, {"do_sample": False, "prompt_lookup_num_tokens": 4}),
    "assisted": (1, {"do_sample": False, "assisted": True}),
    "assisted sampling": (1, {"do_sample": True, "assisted": True}),
}
"""Prompts in a left-padded batch, and options for `generate`: every way in which it calls a processor."""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="What trimtab.load takes.")] = "smollm2-135m",
    scale: Annotated[float, typer.Option(min=1.0, help="Guidance scale s.")] = 1.5,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 24,
    json_out: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
) -> None:
    """Hold both processors against a reference without a cache."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
    about, began = provenance(), time.process_time()
    lm, tokenizer = trimtab.load(model)
    lm.generation_config.eos_token_id = None  # all texts of one length
    tokenizer.padding_side = "left"
    negative = tokenizer(NEGATIVE)["input_ids"]
    results = []
    cases = [(mode, "last token") for mode in (*MODES, "second call")]
    cases += [(mode, "negative prompt") for mode in ("greedy", "greedy batch", "beams", "return sequences")]
    for mode, context in tqdm(cases, unit="mode"):
        rows, options = MODES.get(mode, MODES["greedy"])
        inputs = tokenizer(PROMPTS[:rows], return_tensors="pt", padding=True)
        case = Guidance(lm, scale, inputs, negative if context == "negative prompt" else None)

        def text(
            processor: LogitsProcessor,
            mode: str = mode,
            inputs: dict[str, Tensor] = inputs,
            options: dict[str, Any] = options,
        ) -> Tensor:
            for _ in range(1 + (mode == "second call")):
                # beams are ranked by their scores, which transformers' guidance leaves unnormalised
                out = generated(lm, inputs, processor, options | {"renormalize_logits": True}, max_new_tokens)
            return out[:, inputs["input_ids"].shape[1] :]

        expected = text(case.naive())
        found: dict[str, Any] = {"mode": mode, "negative": context, "tokens": expected.numel()}
        for name, processor in (("transformers", case.peer), ("trimtab", case.ours)):
            try:
                found[name] = {"equal_tokens": before_difference(text(processor()), expected)}
            except (RuntimeError, ValueError, IndexError) as error:
                found[name] = {"equal_tokens": 0, "error": f"{type(error).__name__}: {error}"[:200]}
            found[name]["right"] = found[name]["equal_tokens"] == found["tokens"]
        results.append(found)
    about["cpu_seconds"] = round(time.process_time() - began, 1)
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"model": model, "guidance_scale": scale, "max_new_tokens": max_new_tokens}
        json_out.write_text(json.dumps({"provenance": about, **settings, "results": results}, indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(shown(results))


class Guidance:
    """The formula as transformers, trimtab and plain arithmetic compute it.

    Args:
        model: guided, and read by itself for the negative.
        scale: s.
        inputs: the left-padded batch.
        negative: ids of the negative prompt; None for each prompt's last token.
    """

    def __init__(
        self, model: PreTrainedModel, scale: float, inputs: dict[str, Tensor], negative: list[int] | None
    ) -> None:
        self.model, self.scale, self.mask, self.negative = model, scale, inputs["attention_mask"], negative
        self.negatives = [[negative or [last]] for last in inputs["input_ids"][:, -1].tolist()]

    def peer(self) -> LogitsProcessor:
        ids = None if self.negative is None else torch.tensor([self.negative] * len(self.mask))
        return UnbatchedClassifierFreeGuidanceLogitsProcessor(self.scale, self.model, unconditional_ids=ids)

    def ours(self) -> LogitsProcessor:
        return Steer(self.model, 0.0, self.scale - 1, self.negatives, expert=self.model, balanced=True)

    def naive(self) -> LogitsProcessor:
        def score(index: int, prompt: list[int], new: list[int], p: Tensor) -> Tensor:
            negative = log_probs(self.model, [*self.negatives[index][0], *new])
            return (self.scale * p - (self.scale - 1) * negative).log_softmax(-1)

        return NaiveRows(self.mask, score)


def generated(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    processor: LogitsProcessor,
    options: dict[str, Any],
    max_new_tokens: int,
) -> Any:
    """What `generate` returns in a mode; `assisted` stands for a slightly changed copy as the assistant."""
    options = dict(options)
    if options.pop("assisted", False):
        options["assistant_model"] = assistant_of(model)
    set_seed(0)
    return model.generate(
        **inputs, logits_processor=[processor], max_new_tokens=max_new_tokens, pad_token_id=0, **options
    )


@functools.lru_cache(1)
def assistant_of(model: PreTrainedModel) -> PreTrainedModel:
    assistant = perturbed(model, 9, 0.02)
    # fixed draft lengths: an installed scikit-learn would change them
    assistant.generation_config = GenerationConfig(
        num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    return assistant


def before_difference(found: Tensor, expected: Tensor) -> int:
    """Tokens of all rows before each row's first difference."""
    return int((found == expected).long().cumprod(-1).sum()) if found.shape == expected.shape else 0


def shown(results: list[dict[str, Any]]) -> Table:
    table = Table("negative", "mode", "transformers", "trimtab", title="tokens equal to the reference without a cache")
    for row in results:
        cells = [
            ("right" if row[name]["right"] else row[name].get("error", "WRONG").split(":")[0])
            + f" {row[name]['equal_tokens']}/{row['tokens']}"
            for name in ("transformers", "trimtab")
        ]
        table.add_row(row["negative"], row["mode"], *cells)
    return table


if __name__ == "__main__":
    app()
