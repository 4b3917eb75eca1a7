"""Measuring: all sides on one prompt, then the next, every record written down as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from .engines import Decoder
from .journal import Journal
from .prompts import Prompt
from .records import Record
from .schedule import turns

WARM_UP_TOKENS = 16

Score = Callable[[Prompt, str], float]


def measure(
    sides: Sequence[str],
    prompts: Sequence[Prompt],
    journal: Journal,
    *,
    ready: Callable[[], Mapping[str, Decoder]],
    rounds: int,
    max_new_tokens: int,
    seeds: Mapping[str, int],
    score: Score | None = None,
    seen: Callable[[Record], None] = lambda record: None,
    enough: Callable[[Sequence[Record]], bool] = lambda records: False,
) -> list[Record]:
    """Measure what the journal does not have yet.

    Args:
        sides: names, in their order.
        prompts: in theirs.
        journal: of this run.
        ready: gives the sides by name. Called once, and only if there is something to measure: a complete run is read
            without loading models that would decode nothing.
        rounds: how often every prompt is decoded by each side, at most.
        max_new_tokens: of each text.
        seeds: of each side's sampling; a prompt's own follows from it, its name and the round, so sides of one seed
            draw the same random numbers.
        score: of a prompt and a text, from 0 to 1.
        seen: called with every record of the run, those of the journal first.
        enough: asked after each prompt; true ends the run.

    Returns:
        The records of these prompts and rounds, in the order in which they were measured. A side that raised has a
        record that says so.
    """
    names = {prompt.id for prompt in prompts}
    records = [
        record for record in journal.records if record.id in names and record.round < rounds and record.side in sides
    ]
    for record in records:
        seen(record)
    done = {(record.id, record.round, record.side) for record in records}
    decoders: Mapping[str, Decoder] = {}
    for pair in turns(sides, len(prompts), rounds):
        prompt = prompts[pair[0].prompt]
        missing = [turn for turn in pair if (prompt.id, turn.round, turn.side) not in done]
        if missing:
            if enough(records):
                break
            if not decoders:
                decoders = ready()
                _warm_up(decoders, prompts, max_new_tokens)
        for turn in missing:
            seed = prompt_seed(seeds[turn.side], prompt.id, turn.round)
            record = _measured(
                decoders[turn.side], prompt, turn.side, turn.round, turn.first, seed, max_new_tokens, score
            )
            journal.append(record)
            records.append(record)
            seen(record)
    return records


def prompt_seed(seed: int, name: str, number: int) -> int:
    """Of one prompt in one round; 32 bits, which every engine takes."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {name}".encode()).digest()[:4], "big")


def _warm_up(sides: Mapping[str, Decoder], prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Two short decodes, the second of them of the longest prompt: buffers are made, code is compiled."""
    for prompt in (prompts[0], max(prompts, key=lambda prompt: len(prompt.text))):
        for side in sides.values():
            try:
                side.decode(prompt, 0, min(WARM_UP_TOKENS, max_new_tokens))
            except Exception:
                continue  # the same will be seen, and recorded, where it counts


def _measured(
    side: Decoder,
    prompt: Prompt,
    name: str,
    number: int,
    first: bool,
    seed: int,
    max_new_tokens: int,
    score: Score | None,
) -> Record:
    try:
        found = side.decode(prompt, seed, max_new_tokens)
        if not found.tokens:
            raise RuntimeError("no token was generated")
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Record(prompt.id, prompt.group, name, number, first, "", 0, None, 0.0, error=message)
    return Record(
        id=prompt.id,
        group=prompt.group,
        side=name,
        round=number,
        first=first,
        text=found.text,
        tokens=found.tokens,
        prompt_tokens=found.prompt_tokens,
        seconds=found.seconds,
        first_token_seconds=found.first_token_seconds,
        right=None if score is None else score(prompt, found.text),
        stats=found.stats,
        trace=found.trace,
    )
