"""Texts of two sides of each prompt, as the page's script reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .numbers import is_number, short
from .per_prompt import Pair, Record, pairs_of


@dataclass(frozen=True, slots=True)
class Colouring:
    """What tokens can be coloured by.

    Attributes:
        key: of a traced token.
        label: for the switch.
        unit: behind a value in a tooltip.
        classes: CSS class and label, in the legend's order.
        edges: of a number, where the classes meet; empty for names.
        names: of a name or a truth, which value is of which class.
    """

    key: str
    label: str
    unit: str
    classes: list[tuple[str, str]]
    edges: list[float]
    names: list[Any]


def _scale(edges: list[float], unit: str) -> list[tuple[str, str]]:
    """Classes of a sequence: under the first edge, between two, from the last."""
    labels = [f"< {edges[0]:g}", *(f"{low:g}\N{EN DASH}{high:g}" for low, high in pairwise(edges))]
    return [(f"s{place}", f"{label} {unit}".strip()) for place, label in enumerate([*labels, f"≥ {edges[-1]:g}"])]


_ENTROPY_EDGES = [0.25, 0.5, 1.0, 2.0, 3.0, 5.0]
_ALPHA_EDGES = [0.1, 0.5, 0.9, 1.1, 1.5, 1.9]

COLOURINGS = (
    Colouring("entropy", "entropy", "bits", _scale(_ENTROPY_EDGES, "bits"), _ENTROPY_EDGES, []),
    Colouring("model", "model", "", [("n0", "small model"), ("n1", "large model")], [], ["small", "large"]),
    Colouring("accepted", "drafts", "", [("n1", "accepted draft"), ("n2", "not drafted")], [], [True, False]),
    Colouring("alpha", "alpha", "", _scale(_ALPHA_EDGES, ""), _ALPHA_EDGES, []),
)


def texts_of(
    result: Mapping[str, Any], pairings: Sequence[tuple[str, str]], names: Mapping[str, str]
) -> dict[str, Any]:
    """Plain data for JSON.

    `colourings` that some token has a value for; `prompts` by id; `sides`, each different text once, however many it is
    compared with; and `pairs` of two of them.

    Args:
        result: the JSON of a comparison or a sweep.
        pairings: of which sides texts stand beside each other.
        names: of each side, for readers.
    """
    records = result["records"]
    tokens = [token for record in records for token in record.get("trace") or []]
    known = [c for c in COLOURINGS if any(token.get(c.key) is not None for token in tokens)]
    pool = _Pool(names)
    pairs = [
        pair
        for sides in pairings
        for name, rounds in pairs_of(records, sides).items()
        for pair in _pairs(name, rounds, pool)
    ]
    prompts = {name: result["prompts"].get(name, {}) for name in dict.fromkeys(pair["id"] for pair in pairs)}
    return {
        "colourings": [
            {"key": c.key, "label": c.label, "unit": c.unit, "classes": c.classes, "edges": c.edges, "names": c.names}
            for c in known
        ],
        "prompts": {name: [str(prompt.get("text", "")), _answer(prompt)] for name, prompt in prompts.items()},
        "sides": pool.sides,
        "pairs": pairs,
    }


class _Pool:
    """Sides of pairs, each once."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._places: dict[int, int] = {}
        self.sides: list[dict[str, Any]] = []

    def place(self, record: Record) -> int:
        if id(record) not in self._places:
            self._places[id(record)] = len(self.sides)
            self.sides.append({"name": self._names[record["side"]], **_side(record)})
        return self._places[id(record)]


def _pairs(name: str, rounds: Mapping[int, Pair], pool: _Pool) -> Iterable[dict[str, Any]]:
    """One for each different pair of texts among the rounds."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for number, (a, b) in rounds.items():
        contents = _content(a), _content(b)
        if contents in seen:
            seen[contents]["rounds"].append(number + 1)
            continue
        # texts are compared, not contents: a trace may show an end token that the text leaves out
        same = a["text"] == b["text"]
        seen[contents] = {
            "id": name,
            "group": a["group"],
            "with": b["side"],
            "rounds": [number + 1],
            "same": same,
            "fork": None if same else _common_units(*contents),
            "sides": [pool.place(a), pool.place(b)],
        }
    return seen.values()


def _content(record: Record) -> str:
    trace = record.get("trace") or []
    return "".join(token["text"] for token in trace) if trace else record["text"]


def _answer(prompt: Mapping[str, Any]) -> str:
    """The right answer, or several of them; empty where the file has none."""
    found = prompt.get("answer", "")
    return ", ".join(map(str, found)) if isinstance(found, list | tuple) else str(found)


def _side(record: Record) -> dict[str, Any]:
    """Columns: of one object for each token the names of its keys would be most."""
    trace = record.get("trace") or []
    side: dict[str, Any] = {"text": None if trace else record["text"], "note": _note(record), "stats": _flat(record)}
    if trace:
        side["tokens"] = [token["text"] for token in trace]
        for colouring in COLOURINGS:
            column = [token.get(colouring.key) for token in trace]
            if any(value is not None for value in column):
                side[colouring.key] = [_plain(value) for value in column]
    return side


def _plain(value: Any) -> Any:
    """For JSON, which has no infinity."""
    return (round(value, 3) if is_number(value) else None) if isinstance(value, float) else value


def _note(record: Record) -> str:
    note = f"{record['tokens']} tokens in {short(record['seconds'])} s"
    if record["right"] is not None:
        verdict = {1.0: "right", 0.0: "wrong"}.get(float(record["right"]), f"scored {short(record['right'])}")
        note = f"{note}, {verdict}"
    return note


def _flat(record: Record) -> list[tuple[str, str]]:
    """The method's own figures, those inside others with both names; lists are left out."""
    found: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix} {key}".strip().replace("_", " "), inner)
        elif isinstance(value, bool | str):
            found.append((prefix, str(value)))
        elif isinstance(value, int | float):
            found.append((prefix, short(value)))

    walk("", record.get("stats") or {})
    return found


def _common_units(a: str, b: str) -> int:
    """Length of what both begin with, in UTF-16 units: a browser counts strings in those."""
    alike = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return len(a[:alike].encode("utf-16-le", "surrogatepass")) // 2
