"""Runs of a machine and of models whose truth is known: prompts of all lengths, noise with heavy tails, drift."""

from __future__ import annotations

import numpy as np

from trimtab.compare.records import Record
from trimtab.compare.schedule import turns


def simulated(
    seed: int, prompts: int, *, slowdown: float = 0.0, gained: float = 0.05, lost: float = 0.05, rounds: int = 1
) -> list[Record]:
    """Records as a comparison writes them, in its order.

    Args:
        seed: of everything.
        prompts: how many.
        slowdown: share by which B's seconds are more than A's, on average; it differs between prompts.
        gained: share of the prompts that B alone gets right.
        lost: share of the prompts that A alone gets right.
        rounds: of the run.
    """
    generator = np.random.default_rng(seed)
    tokens = generator.lognormal(4, 0.7, prompts).clip(8, 512).astype(int)
    pace = 0.02 * generator.lognormal(0, 0.3, prompts)
    slower = 1 + slowdown * generator.lognormal(-0.125, 0.5, prompts)
    right = generator.choice(4, prompts, p=[gained, lost, 0.4, 0.6 - gained - lost])
    answers = {"a": np.isin(right, (1, 2)), "b": np.isin(right, (0, 2))}
    clock = 0.0
    records = []
    for turn in (turn for pair in turns(("a", "b"), prompts, rounds) for turn in pair):
        drift = 1 + 0.3 * np.sin(clock / 300) + clock / 20_000
        hiccup = 1 + (generator.random() < 0.02) * generator.exponential(0.25)
        noise = hiccup * np.exp(0.04 * np.clip(generator.standard_t(4), -8, 8))
        work = tokens[turn.prompt] * pace[turn.prompt] * (slower[turn.prompt] if turn.side == "b" else 1)
        seconds = float(work * drift * noise)
        clock += seconds
        records.append(
            Record(
                id=str(turn.prompt),
                group="all",
                side=turn.side,
                round=turn.round,
                first=turn.first,
                text="",
                tokens=int(tokens[turn.prompt]),
                prompt_tokens=10,
                seconds=seconds,
                first_token_seconds=seconds / 20,
                right=float(answers[turn.side][turn.prompt]),
            )
        )
    return records
