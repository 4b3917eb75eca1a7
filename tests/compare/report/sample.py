"""A comparison and a sweep whose texts try to leave the page's markup."""

from __future__ import annotations

import json
from typing import Any

from trimtab.compare.records import Comparison, Figure, Point, Record, Sweep, TracedToken

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!--<script>",
    "]]>'\"&amp;{{ 7 * 7 }}{% raw %}",
    "\u2028\u2029\x00\ud800 \U0001f642\u202e",
]
SETTINGS = {"prompts": HOSTILE[0], "limit": 6, "max_new_tokens": 16, "temperature": 0.0, "seed": 0, "rounds": 1}
PROVENANCE = {
    "command": ["trimtab", "ab", HOSTILE[1]],
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "a processor",
    "versions": {"trimtab": "0.1.0", "torch": "2.13.0"},
}


def figure(name: str = "tokens_per_second", change: float = 1.5, **rest: Any) -> Figure:
    given = {"a": 10.0, "b": 15.0, "kind": "ratio", "low": 1.2, "high": 1.9, "verdict": f"{name} {HOSTILE[1]}"}
    return Figure(name, change=change, **{**given, **rest})


def trace(words: list[str], *, large: bool) -> list[TracedToken]:
    kinds = ("small", "large")
    return [
        TracedToken(word, entropy=0.3 * place, model=kinds[place % 2] if large else None, accepted=bool(place % 3))
        for place, word in enumerate(words)
    ]


def record(name: str, side: str, words: list[str], **rest: Any) -> Record:
    given: dict[str, Any] = {"group": f"group {name[-1]}", "round": 0, "first": side == "a", "tokens": len(words)}
    given |= {"prompt_tokens": 5, "seconds": 2.0 if side == "a" else 1.0 + len(name) / 10, "text": "".join(words)}
    return Record(id=name, side=side, **{**given, **rest})


def records(a: str = "a", b: str = "b", prompts: int = 15) -> list[Record]:
    """Every third text is the same on both sides, one has no trace, and one prompt fails on `b`."""
    found = []
    for number in range(prompts):
        name = f"{HOSTILE[1]}-{number}" if number == 0 else f"p{number}"
        words = ["the ", "moon ", *HOSTILE, " end", str(number)]
        others = words if number % 3 == 2 else [*words[:4], "other ", *words[4:]]
        found.append(record(name, a, words, trace=trace(words, large=False), right=1.0))
        if number == 1:
            found.append(record(name, b, [], error=f"RuntimeError: {HOSTILE[1]}", tokens=0))
        else:
            tokens = [] if number == 3 else trace(others, large=True)
            stats = {"drafted": 4, HOSTILE[1]: {"share": 0.25}}
            found.append(record(name, b, others, trace=tokens, right=0.0, stats=stats))
    return found


def comparison(prompts: int = 15) -> dict[str, Any]:
    """As its JSON is read back."""
    taken = records(prompts=prompts)
    setup = {"method": "none", "options": {}, "engine": "transformers", "model": "smollm2-135m"}
    figures = [
        figure(),
        figure("first_token_seconds", 1.0, low=None, high=None),
        figure("accuracy", -0.25, kind="difference", a=1.0, b=0.75, low=-0.5, high=0.125, p_value=0.0625),
    ]
    found = Comparison(
        setups={"a": {"setup": "none", **setup}, "b": {"setup": HOSTILE[1], **setup}},
        settings=SETTINGS,
        provenance=PROVENANCE,
        prompts={r.id: {"text": f"Say {HOSTILE[0]}", "answer": HOSTILE[1]} for r in taken},
        records=taken,
        figures=figures,
        groups=dict.fromkeys((HOSTILE[1], "group 0", "group 1"), figures),
        verdict=["B writes 1.5 times as many tokens per second as A.", HOSTILE[1]],
        failures={"a": 0, "b": 1},
    )
    return json.loads(json.dumps(found.as_dict()))


def sweep() -> dict[str, Any]:
    """As its JSON is read back."""
    labels = ["bits=8", f"bits={HOSTILE[1]}", "bits=2"]
    taken = records("baseline", labels[0], 4)
    taken += [r for label in labels[1:] for r in records("baseline", label, 4) if r.side == label]
    points = [
        Point(label, {"bits": label}, [figure(change=speed), _agreement(share)], speed > 1.2)
        for label, speed, share in zip(labels, (1.5, 2.0, 1.1), (0.9, 0.5, 0.4), strict=True)
    ]
    found = Sweep(
        setup={"setup": HOSTILE[1], "method": "quantized", "options": {}, "engine": "transformers", "model": "m"},
        settings={**SETTINGS, "over": {"bits": [8, 4, 2]}},
        provenance=PROVENANCE,
        prompts={r.id: {"text": "Say"} for r in taken},
        baseline={"setup": "none", "method": "none", "pareto": True, "failures": 0},
        points=points,
        records=taken,
        quality="agreement",
        verdict=[HOSTILE[1]],
    )
    return json.loads(json.dumps(found.as_dict()))


def _agreement(share: float) -> Figure:
    return figure("agreement", share - 1, kind="difference", a=1.0, b=share, low=share - 1.1, high=share - 0.9)
