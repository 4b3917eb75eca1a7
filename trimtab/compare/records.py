"""What a comparison writes down: one record for every prompt and side, and the whole result as JSON data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

FORMAT = 1
"""Of the JSON that `trimtab ab --json` writes; a reader refuses another."""


@dataclass(frozen=True, slots=True)
class TracedToken:
    """One generated token and what the method did there; what a method does not know stays None.

    Attributes:
        text: what the token adds to the text.
        entropy: of the distribution it was chosen from, in bits.
        model: which of several models wrote it, `large` or `small`.
        accepted: whether it had been written ahead, by prompt lookup or in low bits, and was only verified.
        alpha: the largest strength of an expert in logit fusion.
    """

    text: str
    entropy: float | None = None
    model: str | None = None
    accepted: bool | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt decoded by one side, or the error that it ended in.

    Attributes:
        id: of the prompt, as its file names it.
        group: the task it is reported under.
        side: `a` or `b`; in a sweep `baseline` or the label of a point.
        round: from 0; each round decodes every prompt once with each side.
        first: whether this side went before the other one here.
        text: what was generated.
        tokens: generated, the end token included.
        prompt_tokens: in the prompt, with its chat template; None where an engine does not say.
        seconds: from the request to the last token.
        first_token_seconds: from the request to the first token; None where it was not observed.
        right: by the task's scorer, from 0 to 1; None without one.
        stats: the method's own figures, plain data.
        trace: token by token, empty where the engine cannot say.
        error: what failed, one line; then there are no tokens, and the seconds say nothing.
    """

    id: str
    group: str
    side: str
    round: int
    first: bool
    text: str
    tokens: int
    prompt_tokens: int | None
    seconds: float
    first_token_seconds: float | None = None
    right: float | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    trace: list[TracedToken] = field(default_factory=list)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """From what `as_dict` gave.

        Raises:
            TypeError: keys are missing or unknown.
        """
        return cls(**{**data, "trace": [TracedToken(**token) for token in data.get("trace", [])]})


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure of both sides and what may be said of their difference.

    Attributes:
        name: `tokens_per_second`, `first_token_seconds`, `seconds_per_token`, `tokens`, `accuracy`, `agreement`.
        a: of side A, over all prompts.
        b: of side B.
        kind: whether `change` is `ratio`, B over A, or `difference`, B less A.
        change: its estimate.
        low: lower bound of its 95% interval; None where the prompts are too few to say.
        high: upper bound.
        p_value: of McNemar's exact test, for accuracy alone.
        verdict: one sentence.
    """

    name: str
    a: float
    b: float
    kind: Literal["ratio", "difference"]
    change: float
    low: float | None
    high: float | None
    verdict: str
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a report needs.

    Attributes:
        setups: for each side what it was: `setup` (as the command line wrote it), `method`, `options`, `engine`,
            `model`.
        settings: of the run: prompts, limit, max_new_tokens, temperature, seed, task, rounds.
        provenance: command, date, machine, versions.
        prompts: text of each prompt by its id, and the right answer if there is one.
        records: every one, in the order in which they were measured.
        figures: over all prompts.
        groups: figures of each group of prompts, if there are several.
        verdict: the plain sentences that come first in any report.
        failures: how many prompts each side failed on.
    """

    setups: dict[Side, dict[str, Any]]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    prompts: dict[str, dict[str, Any]]
    records: list[Record]
    figures: list[Figure]
    groups: dict[str, list[Figure]]
    verdict: list[str]
    failures: dict[Side, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the format's number."""
        return {"format": FORMAT, "kind": "ab", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a sweep beside the baseline, which is side A of its figures.

    Attributes:
        label: its options as text, `bits=8,draft_length=4`; the `side` of its records.
        options: the values that were swept.
        figures: over all prompts.
        pareto: whether no other setting, the baseline among them, is at least as fast and as good and one of both more.
        failures: how many prompts it failed on.
    """

    label: str
    options: dict[str, Any]
    figures: list[Figure]
    pareto: bool
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Sweep:
    """Everything that a report of a sweep needs.

    Attributes:
        setup: what was swept, keys as in `Comparison.setups`.
        settings: of the run, as in a comparison, and `over`: the values of each option.
        provenance: command, date, machine, versions.
        prompts: text of each prompt by its id, and the right answer if there is one.
        baseline: its set-up, and `pareto` and `failures` as a point has them.
        points: in the order of `over`.
        records: every one, in the order in which they were measured.
        quality: what the frontier's quality is, the name of a figure: `accuracy`, or `agreement` with the baseline.
        verdict: the plain sentences that come first in any report.
    """

    setup: dict[str, Any]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    prompts: dict[str, dict[str, Any]]
    baseline: dict[str, Any]
    points: list[Point]
    records: list[Record]
    quality: str
    verdict: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the format's number."""
        return {"format": FORMAT, "kind": "sweep", **asdict(self)}
