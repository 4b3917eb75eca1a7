"""`trimtab measure`: diversity and coherence of the texts of a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command_support import check_model_name, import_quietly, option, remember_debug, whole, working
from .errors import InputError

if TYPE_CHECKING:
    from .integrations.transformers.loading import Loaded
    from .synthesis.measures import Measure

_MEASURES = "Measures"

ReferenceOption = Annotated[
    Path | None,
    option(
        "--reference",
        metavar="FILE",
        panel=_MEASURES,
        help="Held-out real texts (.jsonl with `text`) to measure against; kept out of everything that is generated.",
    ),
]
JudgeOption = Annotated[
    str | None,
    option("--judge", metavar="NAME", panel=_MEASURES, help="Model for the perplexity of the texts, as --model."),
]


def measure(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL with `text`.", show_default=False)],
    reference: ReferenceOption = None,
    judge: JudgeOption = None,
    threads: Annotated[
        int | None, option("--threads", help="CPU threads; default: torch's choice.", parser=whole, metavar="N")
    ] = None,
    as_json: Annotated[bool, option("--json", help="Print one JSON object.")] = False,
    debug: Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)] = False,
) -> None:
    """Measure how diverse and how coherent the texts of a data set are."""
    from .synthesis.texts import read_texts

    texts = [each["text"] for each in read_texts(file, "FILE")]
    real = [] if reference is None else [each["text"] for each in read_texts(reference, "--reference")]
    check_judge(judge)
    with working("loading"):
        import_quietly(threads)
        judging = load_judge(judge)
    found = measured(texts, real, judging)
    if as_json:
        print(json.dumps({"file": str(file), "measures": as_dict(found)}, ensure_ascii=False))
    else:
        print_table(found)


def check_judge(judge: str | None) -> None:
    """Refuse an obvious misspelling of `--judge`.

    Raises:
        InputError: suggests the nearest name.
    """
    if judge is not None:
        check_model_name(judge, "--judge")


def load_judge(judge: str | None) -> Loaded | None:
    """The reference model for perplexity, if one was named."""
    from .integrations.transformers import loading

    return None if judge is None else loading.load(judge)


def measured(texts: Sequence[str], reference: Sequence[str], judge: Loaded | None) -> list[Measure]:
    """All measures for which the models are there."""
    from .ability.sentence_encoder import SentenceEncoder
    from .synthesis.measures import measure as compute

    missing = ""
    with working("measuring"):
        try:
            encoder = SentenceEncoder()
        except InputError as error:
            encoder, missing = None, str(error)
        return compute(texts, reference, encoder=encoder, judge=judge, no_encoder=missing)


def as_dict(found: Sequence[Measure]) -> dict[str, Any]:
    """Plain data for JSON, by name."""
    return {
        each.name: {"generated": each.generated, "reference": each.reference}
        | ({"missing": each.missing} if each.missing else {})
        for each in found
    }


def print_table(found: Sequence[Measure]) -> None:
    """A line a measure, and what is missing below it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("measure")
    for name in ("generated", "reference"):
        table.add_column(name, justify="right")
    table.add_column("best")
    for each in found:
        if each.generated is not None:
            table.add_row(each.label, _shown(each.generated), _shown(each.reference), each.better)
    console = Console(highlight=False)
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for each in found:
        if each.generated is None:
            reasons.setdefault(each.missing or "too few words", []).append(each.label)
    for reason, labels in reasons.items():
        console.print(f"not measured: {', '.join(labels)} ({reason})", markup=False, soft_wrap=True)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}" if value < 10 else f"{value:.1f}"
