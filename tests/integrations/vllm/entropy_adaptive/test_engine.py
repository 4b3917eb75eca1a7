"""Entropy-adaptive decoding in a real engine, against plain transformers on the same text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import trimtab
from tests.integrations.vllm.engine import run
from tests.integrations.vllm.family import Family
from tests.integrations.vllm.sampled_texts import assert_drawn_from, text_shares
from tests.integrations.vllm.texts import TEXTS
from trimtab.decoding.entropy_gate import GateSettings
from trimtab.integrations.vllm.entropy_adaptive.options import REQUESTS

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

TOKENS = 24
WINDOW = 2
SAMPLES = 300
SAMPLED = {
    "prompt": TEXTS[0],
    "temperature": 0.8,
    "top_k": 2,
    "max_tokens": 3,
    "ignore_eos": True,
    "extra_args": {"trimtab_threshold": float("inf")},
}
"""Two tokens of the large model, as many as it has to stay for, then one of the small model."""
TIE = 1e-3
"""Two logits so near (in float64) that float32 may order them either way."""


def greedy(text: str, threshold: float, tokens: int = TOKENS) -> dict[str, Any]:
    extra = {"trimtab_threshold": threshold}
    return {"prompt": text, "temperature": 0, "max_tokens": tokens, "ignore_eos": True, "extra_args": extra}


def engine(family: Family, requests: list[dict[str, Any]], *, drafts: int = 5, **options: Any) -> dict[str, Any]:
    return run(
        requests,
        rpc="entropy_adaptive_counts",
        **{
            "model": str(family.directories["large"]),
            "worker_cls": "trimtab.integrations.vllm.entropy_adaptive.worker.Worker",
            "logits_processors": [REQUESTS],
            "speculative_config": {
                "method": "draft_model",
                "model": str(family.directories["base"]),
                "num_speculative_tokens": drafts,
                "draft_sample_method": "probabilistic",
            },
            "additional_config": {"trimtab": {"entropy_adaptive": {"threshold": 2.0, "window": WINDOW}}},
            **options,
        },
    )


def written(result: dict[str, Any]) -> list[list[int]]:
    return [samples[0]["tokens"] for samples in result["outputs"]]


def generated(family: Family, text: str, threshold: float, tokens: int = TOKENS) -> tuple[list[int], Any]:
    """trimtab's own loop in transformers."""
    ids = family.tokenizer(text, return_tensors="pt").input_ids
    method = trimtab.EntropyAdaptive(family.models["base"], threshold, window=WINDOW, start="large")
    output = family.models["large"].generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=method,
        max_new_tokens=tokens,
        eos_token_id=-1,  # as ignore_eos
        do_sample=False,
        return_dict_in_generate=True,
    )
    return output.sequences[0, ids.shape[1] :].tolist(), output.stats.rows[0]


class Replay:
    """Reads a text once with both models and takes the gate's turns over it, in float64.

    Attributes:
        forced: places of the small model's turn where the token is the large model's.
        wrong: places whose token is neither, nor a tie.
    """

    def __init__(self, family: Family, text: str, tokens: list[int], gate: GateSettings) -> None:
        prompt = family.tokenizer(text).input_ids
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logits = {
                name: family.models[name](ids).logits[0, len(prompt) - 1 : -1].double() for name in ("large", "base")
            }
        self.forced: list[int] = []
        self.wrong: list[int] = []
        large, stay, bits = True, 0, []
        for place, token in enumerate(tokens):
            speaker = "large" if large else "base"
            if not self._chose(logits[speaker][place], token):
                if large or not self._chose(logits["large"][place], token):
                    self.wrong.append(place)
                    return
                speaker = "large"
                self.forced.append(place)
            log_p = logits[speaker][place].log_softmax(-1)
            bits.append(float(-(log_p.exp() * log_p).sum() / torch.tensor(2.0).double().log()))
            stay += 1
            wants = sum(bits[-gate.window :]) / len(bits[-gate.window :]) > gate.threshold
            if wants != large and stay >= gate.window:
                large, stay = wants, 0

    @staticmethod
    def _chose(logits: torch.Tensor, token: int) -> bool:
        return bool(logits[token] >= logits.max() - TIE)


def test_texts_of_many_requests_are_those_of_transformers(family: Family) -> None:
    """Twelve prompts twice, more than there are seats, read in chunks, the second time from the prefix cache; three
    thresholds and sampled requests mixed."""
    asked = [(text, (1.0, 2.0, 3.0)[index % 3]) for index, text in enumerate(TEXTS)]
    ours = [greedy(*one) for one in asked]
    result = engine(
        family,
        [*ours, *[SAMPLED] * SAMPLES, *ours],
        max_num_seqs=8,
        max_num_batched_tokens=64,
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        block_size=32,
    )
    texts = written(result)
    assert not result["v2"]
    expected = [generated(family, *one) for one in asked]
    tokens = [text for text, _ in expected]
    assert texts[: len(ours)] == tokens
    assert texts[-len(ours) :] == tokens
    assert result["metrics"]["vllm:prefix_cache_hits"] > 0
    counts = result["rpc"]
    assert counts["small"] + counts["large"] == 2 * len(ours) * TOKENS + SAMPLES * SAMPLED["max_tokens"]
    assert counts["small"] == 2 * sum(row.tokens["small"] for _, row in expected) + SAMPLES
    switches = 2 * sum(row.switches for _, row in expected) + SAMPLES
    # here the turn may change after the last token too
    assert switches <= counts["switches"] <= switches + 2 * len(ours) + SAMPLES
    assert counts["passes"] < counts["small"] + counts["large"]
    sizes = {name: sum(one.numel() for one in model.parameters()) for name, model in family.models.items()}
    share = counts["large_share"]
    assert counts["cost"] == pytest.approx(share + (1 - share) * sizes["base"] / sizes["large"])
    # two tokens of the large model, then one of the small one
    writers = [family.models[name] for name in ("large", "large", "base")]
    prompt = family.tokenizer(SAMPLED["prompt"]).input_ids
    shares = text_shares(writers, prompt, SAMPLED["temperature"], SAMPLED["top_k"])
    assert_drawn_from(shares, texts[len(ours) : -len(ours)])


def test_preemption_costs_at_most_one_forced_token_each(family: Family) -> None:
    """Four requests in a KV cache for two: after a preemption there is no draft for the first token."""
    texts = [f"Tell me about number {number}. " * 9 for number in range(4)]
    asked = [greedy(text, 2.0, 40) for text in texts]
    result = engine(
        family, asked, num_gpu_blocks_override=7, block_size=32, enable_prefix_caching=False, max_model_len=128
    )
    preemptions = result["metrics"]["vllm:num_preemptions"]  # there if it is not 0
    gate = GateSettings(2.0, window=WINDOW)
    replays = [Replay(family, text, tokens, gate) for text, tokens in zip(texts, written(result), strict=True)]
    assert [replay.wrong for replay in replays] == [[]] * len(texts)
    assert sum(len(replay.forced) for replay in replays) <= preemptions


def test_the_second_runner_writes_the_same(family: Family) -> None:
    asked = [(TEXTS[0], 1.0, 5), (TEXTS[2], 2.0, 8)]
    options = {"max_num_seqs": 2, "max_model_len": 64, "max_num_batched_tokens": 64}
    result = engine(family, [greedy(*one) for one in asked], v2=True, scrape=True, **options)
    assert result["v2"]
    assert written(result) == [generated(family, *one)[0] for one in asked]
    # the worker hears of an end with the next step: there is none after the last request's
    ended = [result["scraped"][f"trimtab:entropy_adaptive_tokens_total {writer}"] for writer in ("small", "large")]
    assert sum(ended) == 5
    assert 1 <= result["scraped"]["trimtab:entropy_adaptive_passes_total"] <= 5
