"""`trimtab calibrate`: settings of a method from prompts of the kind that will be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command_support import check_model_name, encode, import_quietly, option, remember_debug, whole
from .errors import InputError

if TYPE_CHECKING:
    from .integrations.transformers.entropy_calibration import Calibration

LOW_BIT = "low-bit"

calibrate = typer.Typer(no_args_is_help=True, help="Find a method's settings on prompts of your own.")


@calibrate.callback()
def _group() -> None:
    """Find a method's settings on prompts of your own."""


@calibrate.command()
def ead(
    prompts: Annotated[Path, typer.Argument(metavar="FILE", help="A prompt a line; or .jsonl, objects with `prompt`.")],
    large: Annotated[str, typer.Option(metavar="NAME", help="The large model, as --model of generate.")],
    small: Annotated[
        str, typer.Option(metavar="NAME", help=f"The small model, or {LOW_BIT} for 8-bit weights of the large one.")
    ],
    large_share: Annotated[
        float, typer.Option(metavar="X", help="Share of the tokens that the large model should write.")
    ] = 0.25,
    max_new_tokens: Annotated[int, typer.Option(parser=whole, metavar="N", help="Tokens a prompt and probe.")] = 64,
    window: Annotated[int, typer.Option(parser=whole, metavar="N", help="Tokens in the rolling mean.")] = 5,
    max_runs: Annotated[int, typer.Option(parser=whole, metavar="N", help="Thresholds to try at most.")] = 10,
    chat: Annotated[
        bool | None, option("--chat/--no-chat", help="Use the chat template; default: if the tokenizer has one.")
    ] = None,
    threads: Annotated[
        int | None, option("--threads", help="CPU threads; default: torch's choice.", parser=whole, metavar="N")
    ] = None,
    as_json: Annotated[bool, option("--json", help="Print one JSON object.")] = False,
    debug: Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)] = False,
) -> None:
    """Find the threshold of entropy-adaptive decoding for a share of the large model, and show what others give."""
    texts = read_prompts(prompts)
    check_model_name(large)
    if small != LOW_BIT:
        check_model_name(small)
    import_quietly(threads)
    from .integrations.transformers.entropy_adaptive import EntropyAdaptive
    from .integrations.transformers.loading import load

    large_model, tokenizer = load(large)
    small_model: Any = LOW_BIT
    if small != LOW_BIT:
        small_model, other = load(small)
        if tokenizer.get_vocab() != other.get_vocab():
            raise InputError(
                f"--small {small} has another vocabulary than --large {large}: give models of one tokenizer"
            )
    encoded = [encode(tokenizer, text, chat=chat, system=None, model_name=large)["input_ids"] for text in texts]
    found = EntropyAdaptive.calibrate(
        large_model,
        small_model,
        [ids[0].tolist() for ids in encoded],
        large_share,
        max_new_tokens=max_new_tokens,
        window=window,
        max_runs=max_runs,
    )
    print(json.dumps(as_dict(found), indent=2) if as_json else table(found))


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, or the `prompt` of each object of a .jsonl file; empty lines do not count.

    Raises:
        InputError: the file cannot be read, has no prompt, or a line is not such an object.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"FILE {str(path)!r} cannot be read ({error}): give a readable UTF-8 file") from error
    texts = [line for line in lines if line.strip()]
    if path.suffix == ".jsonl":
        texts = [_prompt_of(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise InputError(f"FILE {str(path)!r} has no prompt: give one a line")
    return texts


def _prompt_of(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["prompt"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f'FILE {str(path)!r}, line {number} is no JSON object with "prompt": give one a line'
        ) from error
    if not isinstance(text, str) or not text:
        raise InputError(f'FILE {str(path)!r}, line {number}: "prompt" is {text!r:.40}: give some text')
    return text


def as_dict(found: Calibration) -> dict[str, Any]:
    """Plain data for JSON; a threshold that is never exceeded is null."""
    points = [
        {
            "threshold": _finite(point.threshold),
            "large_share": round(point.large_share, 4),
            "cost": round(point.cost, 4),
            "switches": point.switches,
            "tokens": point.tokens,
            "seconds": round(point.seconds, 3),
        }
        for point in found.frontier
    ]
    return {"threshold": _finite(found.threshold), "large_share": round(found.large_share, 4), "frontier": points}


def _finite(threshold: float) -> float | None:
    return None if threshold == float("inf") else threshold


def table(found: Calibration) -> str:
    """One line a threshold, the chosen one marked."""
    lines = ["   threshold  large share   cost  switches  tokens/s"]
    lines += [
        f"{'->' if point.threshold == found.threshold else '  '} {point.threshold:9.4f}  {point.large_share:11.1%}  "
        f"{point.cost:5.3f}  {point.switches:8}  {point.tokens / point.seconds:8.1f}"
        for point in found.frontier
    ]
    return "\n".join(lines)
