"""`trimtab temperature`: `predict` here, what a prompt asks for and the temperature that follows; `fit` beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError
from .generate_command import read_prompt
from .temperature_fit_command import fit

RULES = ("expected", "likeliest")

temperature = typer.Typer(
    no_args_is_help=True, help="Choose a sampling temperature for a prompt, and measure a model for it."
)


@temperature.callback()
def _group() -> None:
    """Choose a sampling temperature for a prompt, and measure a model for it."""


temperature.command()(fit)


@temperature.command()
def predict(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|SIZE", help="A model of the table, or a size such as 7B or 135M.", show_default=False
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The prompt, or - for stdin (less one newline at its end).", show_default=False
        ),
    ] = None,
    rule: Annotated[
        str, typer.Option(metavar="|".join(RULES), help="Score of all abilities, or of the likeliest (the paper's).")
    ] = "expected",
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Scores to use instead of the paper's (JSON).", show_default=False),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read the prompt from FILE (UTF-8).", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", show_default=False)] = False,
) -> None:
    """Show the temperature for a prompt and the abilities it asks for."""
    if rule not in RULES:
        raise InputError(f"--rule is {rule!r}: give one of {', '.join(RULES)}")
    text = read_prompt(prompt, prompt_file)
    from transformers.utils.logging import disable_progress_bar

    from .decoding.score_table import parameters
    from .decoding.temperature import ABILITIES
    from .integrations.transformers.temperature_selector import TemperatureSelector

    disable_progress_bar()
    selector = TemperatureSelector(parameters(model), table=table, rule=rule)  # type: ignore[arg-type]
    found = selector.predict([text])
    abilities = dict(zip(ABILITIES, (round(share, 4) for share in found.abilities[0].tolist()), strict=True))
    chosen = float(found.temperatures[0])
    if as_json:
        print(json.dumps({"temperature": chosen, "abilities": abilities, "model": model, "rule": rule}))
        return
    print(f"temperature {chosen:g}")
    for ability, share in sorted(abilities.items(), key=lambda item: -item[1]):
        print(f"  {ability:<4}  {share:.2f}")
