"""`trimtab temperature fit`: a table of scores from labelled prompts of one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command_support import check_model_name, encode, import_quietly, option, remember_debug, whole
from .errors import InputError
from .labelled_prompts import LabelledPrompt, read_labelled_prompts
from .scorers import load_scorer

if TYPE_CHECKING:
    from .decoding.temperature_fit import AbilityFit

ABILITIES = ("CR", "CT", "ICL", "IF", "MT", "SUMM")
DEFAULT_GRID = "0.1,0.4,0.7,1,1.3,1.6,1.9"


def fit(
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to measure, as --model of generate.")],
    data: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSON lines with `prompt`, `answer` (or a list) and perhaps `ability`."),
    ],
    scorer: Annotated[str, typer.Option(metavar="NAME", help="exact, contains, number, or FILE.py:FUNCTION.")],
    output: Annotated[
        Path | None, option("--output", "-o", metavar="FILE", help="Write the table here (JSON).")
    ] = None,
    temperatures: Annotated[
        str, typer.Option(metavar="LIST", help="Ascending, with commas between them.")
    ] = DEFAULT_GRID,
    samples: Annotated[int, typer.Option(parser=whole, metavar="N", help="Texts of a prompt and temperature.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(parser=whole, metavar="N", help="Tokens of a text.")] = 64,
    batch_size: Annotated[int, typer.Option(parser=whole, metavar="N", help="Texts generated together.")] = 32,
    ability: Annotated[
        str | None,
        option(
            "--ability",
            metavar="|".join(ABILITIES),
            help="Of prompts without one in the file; default: the classifier says.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(parser=whole, metavar="N", help="Of sampling and of the intervals.")] = 0,
    chat: Annotated[
        bool | None, option("--chat/--no-chat", help="Use the chat template; default: if the tokenizer has one.")
    ] = None,
    dtype: Annotated[
        str | None, option("--dtype", metavar="NAME", help="As of generate; default: the model's.")
    ] = None,
    device: Annotated[str | None, option("--device", metavar="NAME", help="cpu, cuda, ...; default: a GPU.")] = None,
    threads: Annotated[
        int | None, option("--threads", help="CPU threads; default: torch's choice.", parser=whole, metavar="N")
    ] = None,
    force: Annotated[bool, option("--force", help="Replace the output file if it exists.")] = False,
    as_json: Annotated[bool, option("--json", help="Print the table as JSON.")] = False,
    debug: Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)] = False,
) -> None:
    """Measure a model at a grid of temperatures on prompts with right answers, and write a table for `predict`."""
    # everything that can be refused without the model is refused before it is loaded
    items = read_labelled_prompts(data, ABILITIES)
    score = load_scorer(scorer)
    grid = read_grid(temperatures)
    if ability is not None and ability not in ABILITIES:
        raise InputError(f"--ability is {ability!r}: use one of {', '.join(ABILITIES)}")
    counts = {"samples": samples, "max-new-tokens": max_new_tokens, "batch-size": batch_size, "threads": threads}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}: give a whole number of at least 1")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed is {seed}: give a whole number from 0 to 2**63 - 1")
    check_model_name(model)
    if output is not None:
        _check_output(output, force)
    import_quietly(threads)
    from .decoding.score_table import ScoreTable
    from .decoding.temperature_fit import check_grid, score_record
    from .integrations.transformers.loading import load
    from .integrations.transformers.temperature_fit import fit_temperatures

    check_grid(grid)
    abilities = _abilities(items, ability)
    lm, tokenizer = load(model, dtype=dtype, device=device)
    ids = [
        encode(tokenizer, item.prompt, chat=chat, system=None, model_name=model)["input_ids"][0].tolist()
        for item in items
    ]
    fits = fit_temperatures(
        lm, tokenizer, ids, [item.answers for item in items], abilities, score, grid,
        samples=samples, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    record = score_record(
        Path(model).name, float(lm.num_parameters()), grid, fits, ScoreTable.read(),
        source=f"trimtab temperature fit, {data.name}",
        settings={
            "scorer": scorer, "samples": samples, "max_new_tokens": max_new_tokens, "batch_size": batch_size,
            "seed": seed, "labelled_by_classifier": sum(item.ability is None for item in items) if not ability else 0,
        },
    )  # fmt: skip
    if output is not None:
        output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        _print(fits, grid, record, output)


def read_grid(text: str) -> list[float]:
    """Temperatures between commas.

    Raises:
        InputError: one is no number.
    """
    values = []
    for part in text.split(","):
        try:
            values.append(float(part))
        except ValueError:
            raise InputError(f"--temperatures holds {part!r}: give numbers with commas between them") from None
    return values


def _check_output(path: Path, force: bool) -> None:
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise InputError(f"--output is {str(path)!r}, which is no place for a file: give one in a folder that exists")
    if path.exists() and not force:
        raise InputError(f"--output is {str(path)!r}, which exists: give another name, or --force to replace it")


def _abilities(items: list[LabelledPrompt], given: str | None) -> list[str]:
    """Each prompt's ability: the file's, else the given one, else what the classifier says."""
    open_prompts = [item.prompt for item in items if item.ability is None]
    if given is not None or not open_prompts:
        return [item.ability or str(given) for item in items]
    from .integrations.transformers.temperature_selector import TemperatureSelector

    # any size: the abilities do not depend on it
    found = TemperatureSelector(1e9).predict(open_prompts).abilities.argmax(-1).tolist()
    labels = iter(ABILITIES[index] for index in found)
    print(f'{len(open_prompts)} of {len(items)} prompts have no "ability": labelled by the classifier', file=sys.stderr)
    return [item.ability or next(labels) for item in items]


# -- what is shown ---------------------------------------------------------------------------------------------------


def _print(fits: dict[str, AbilityFit], grid: list[float], record: dict[str, Any], output: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    (about,) = record["models"].values()
    table = Table(title="score by temperature, mean and 95% interval", title_justify="left", box=None, pad_edge=False)
    table.add_column("ability")
    table.add_column("prompts", justify="right")
    for temperature in grid:
        table.add_column(f"T={temperature:g}", justify="right")
    table.add_column("best", justify="right")
    table.add_column("mutation", justify="right")
    for ability, fit_of in fits.items():
        scores = fit_of.scores.tolist()
        cells = [_cell(fit_of, index) for index in range(len(grid))]
        best = f"{grid[scores.index(max(scores))]:g}" if max(scores) > 0 else "none"
        table.add_row(ability, str(fit_of.prompts), *cells, best, _mutation(fit_of))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 40 + 20 * len(grid))
    console.print(table)
    if about["borrowed"]:
        source = f"taken from the size class {about['borrowed_from']} of the default table"
        console.print(f"not measured, or 0 everywhere, and {source}: {', '.join(about['borrowed'])}", soft_wrap=True)
    if output is not None:
        name = next(iter(record["models"]))
        console.print(f"wrote {output}: trimtab temperature predict --model {name} --table {output}", soft_wrap=True)


def _cell(fit_of: AbilityFit, index: int) -> str:
    mean = f"{float(fit_of.scores[index]):.2f}"
    if fit_of.low is None or fit_of.high is None:
        return mean
    return f"{mean} ({float(fit_of.low[index]):.2f}-{float(fit_of.high[index]):.2f})"


def _mutation(fit_of: AbilityFit) -> str:
    def shown(value: float) -> str:
        return "none" if value == float("inf") else f"{value:g}"

    if float(fit_of.scores.max()) == 0:
        return "-"
    if fit_of.mutation_low is None or fit_of.mutation_high is None:
        return shown(fit_of.mutation)
    return f"{shown(fit_of.mutation)} ({shown(fit_of.mutation_low)}-{shown(fit_of.mutation_high)})"
