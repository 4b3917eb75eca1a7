"""`trimtab compose`: several models as one directory that vLLM serves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from .command_support import number, option
from .integrations.vllm.composed_directory import compose_fusion, compose_steer

DYNAMIC = "dynamic"

compose = typer.Typer(no_args_is_help=True, help="Write several models as one directory that vLLM serves.")


@compose.callback()
def _group() -> None:
    """Write several models as one directory that vLLM serves."""


def _alpha(text: str) -> float:
    """For typer: a number, nan for `dynamic`."""
    if text == DYNAMIC:
        return math.nan
    try:
        return number(text)
    except typer.BadParameter:
        raise typer.BadParameter(f"is {text!r}: give {DYNAMIC!r} or a number of at least 0") from None


def _directory(name: str, help: str) -> Any:
    return typer.Option(name, metavar="DIR", help=help, show_default=False)


_OUTPUT = typer.Option("--output", "-o", metavar="DIR", help="To be made; may exist if empty.", show_default=False)


@compose.command()
def fusion(
    target: Annotated[Path, _directory("--target", "The large model.")],
    base: Annotated[Path, _directory("--base", "The small model that the experts were fine-tuned from.")],
    output: Annotated[Path, _OUTPUT],
    expert: Annotated[
        list[Path] | None,
        option("--expert", metavar="DIR", help="A fine-tuned copy of the base. May be given several times."),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            metavar=f"{DYNAMIC}|X", parser=_alpha, help="Strength of the experts; dynamic finds it at every token."
        ),
    ] = DYNAMIC,  # type: ignore[assignment]  # typer parses the default too
    alpha_max: Annotated[
        float, typer.Option(metavar="X", parser=number, help="The largest alpha that dynamic may choose.")
    ] = 2.0,
    active: Annotated[
        str, typer.Option(metavar="one|all", help="With several experts: how many may act on a token.")
    ] = "one",
) -> None:
    """Logit fusion: what experts learned over a small base, added to a large model."""
    chosen = None if math.isnan(alpha) else alpha
    compose_fusion(output, target, base, expert or [], alpha=chosen, alpha_max=alpha_max, active=active)  # type: ignore[arg-type]
    _report(output)


@compose.command()
def steer(
    expert: Annotated[Path, _directory("--expert", "The fine-tuned model.")],
    base: Annotated[Path, _directory("--base", "The model that it was fine-tuned from.")],
    output: Annotated[Path, _OUTPUT],
    gamma: Annotated[
        float,
        typer.Option(metavar="X", parser=number, help="How far to go away from the base; the paper tries 0 to 1."),
    ] = 0.2,
) -> None:
    """STEER's contrast: an expert, away from its base."""
    compose_steer(output, expert, base, gamma=gamma)
    _report(output)


def _report(output: Path) -> None:
    print(f"wrote {output}: vllm serve {output}")
