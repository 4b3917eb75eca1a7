"""`trimtab calibrate`: settings of a method from prompts of the kind that will be asked."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command_support import check_model_name, encode, import_quietly, number, option, remember_debug, whole
from .errors import InputError
from .jsonl import read_lines, read_objects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .integrations.transformers.entropy_calibration import Calibration, FrontierPoint, Quality, Texts

LOW_BIT = "low-bit"

calibrate = typer.Typer(no_args_is_help=True, help="Find a method's settings on prompts of your own.")


@calibrate.callback()
def _group() -> None:
    """Find a method's settings on prompts of your own."""


@calibrate.command()
def ead(
    prompts: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A prompt a line; or .jsonl, objects with `prompt` and perhaps `answer`."),
    ],
    large: Annotated[str, typer.Option(metavar="NAME", help="The large model, as --model of generate.")],
    small: Annotated[
        str, typer.Option(metavar="NAME", help=f"The small model, or {LOW_BIT} for 8-bit weights of the large one.")
    ],
    large_share: Annotated[
        float, typer.Option(metavar="X", help="Share of the tokens that the large model should write.")
    ] = 0.25,
    max_new_tokens: Annotated[int, typer.Option(parser=whole, metavar="N", help="Tokens a prompt and probe.")] = 64,
    window: Annotated[int, typer.Option(parser=whole, metavar="N", help="Tokens in the rolling mean.")] = 5,
    decay: Annotated[
        float | None,
        option("--decay", help="Exponential average instead of the window: 0.8, say.", parser=number, metavar="X"),
    ] = None,
    max_runs: Annotated[int, typer.Option(parser=whole, metavar="N", help="Thresholds to try at most.")] = 10,
    plot: Annotated[
        Path | None,
        option("--plot", help="Measure quality too and draw it over cost: a .png, .svg or .pdf.", metavar="FILE"),
    ] = None,
    chat: Annotated[
        bool | None, option("--chat/--no-chat", help="Use the chat template; default: if the tokenizer has one.")
    ] = None,
    threads: Annotated[
        int | None, option("--threads", help="CPU threads; default: torch's choice.", parser=whole, metavar="N")
    ] = None,
    as_json: Annotated[bool, option("--json", help="Print one JSON object.")] = False,
    debug: Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)] = False,
) -> None:
    """Find the threshold of entropy-adaptive decoding for a share of the large model, and show what others give.

    Quality, with --plot: where every prompt has an `answer`, the share of texts that give it (the last number of the
    text, or the answer's words anywhere in it). Elsewhere how much of the large model's own text is written before the
    first other token, mean over the prompts.
    """
    texts, answers = zip(*read_prompts(prompts), strict=True)
    if plot is not None:
        check_plot(plot)
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
    quality, measure = None, ""
    if plot is not None:
        quality, measure = _quality(tokenizer, answers)
    found = EntropyAdaptive.calibrate(
        large_model,
        small_model,
        [ids[0].tolist() for ids in encoded],
        large_share,
        max_new_tokens=max_new_tokens,
        window=window,
        decay=decay,
        max_runs=max_runs,
        quality=quality,
    )
    if plot is not None:
        from .frontier_plot import draw_frontier

        draw_frontier(found, measure, plot.expanduser())
    print(json.dumps(as_dict(found), indent=2) if as_json else table(found))


def read_prompts(path: Path) -> list[tuple[str, str | None]]:
    """The prompts of a file and their right answers.

    A prompt is a line, or the `prompt` of each object of a .jsonl file, whose `answer` may be text or a number; empty
    lines do not count.

    Raises:
        InputError: the file cannot be read, has no prompt, or a line is not such an object.
    """
    found: list[tuple[str, str | None]]
    if path.suffix == ".jsonl":
        found = [_prompt_of(line.value, line.where) for line in read_objects(path, "FILE")]
    else:
        found = [(line.value, None) for line in read_lines(path, "FILE")]
    if not found:
        raise InputError(f"FILE {str(path)!r} has no prompt: give one a line")
    return found


def _prompt_of(record: dict[str, Any], where: str) -> tuple[str, str | None]:
    if "prompt" not in record:
        raise InputError(f'{where} is no JSON object with "prompt": give one a line')
    text, answer = record["prompt"], record.get("answer")
    if not isinstance(text, str) or not text:
        raise InputError(f'{where}: "prompt" is {text!r:.40}: give some text')
    if answer is not None and (not isinstance(answer, (str, int, float)) or not str(answer).strip()):
        raise InputError(f'{where}: "answer" is {answer!r:.40}: give text or a number, or leave it out')
    return text, None if answer is None else str(answer)


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be written after minutes of work.

    Raises:
        InputError: an unknown format, or a folder that is not there.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot is {str(path)!r}: give a file that ends in .png, .svg or .pdf")
    if not path.expanduser().parent.is_dir():
        raise InputError(f"--plot is {str(path)!r}, and its folder is not there: make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(f"--plot {str(path)!r} needs matplotlib: pip install matplotlib, or leave --plot out")


def _quality(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str | None]) -> tuple[Quality, str]:
    from .integrations.transformers.entropy_calibration import agreement

    right = [answer for answer in answers if answer is not None]
    if len(right) < len(answers):
        return agreement, "agreement: share of the large model's\nown text before the first other token"

    def accuracy(texts: Texts, large_texts: Texts) -> float:
        written = [tokenizer.decode(text, skip_special_tokens=True) for text in texts]
        return sum(map(gives, written, right)) / len(right)

    return accuracy, f"accuracy: share of {len(right)} texts\nthat give the right answer"


def gives(text: str, answer: str) -> bool:
    """Whether a text gives an answer: its last number if that is one, else these words anywhere, in any case."""
    try:
        wanted = float(answer.replace(",", ""))
    except ValueError:
        return " ".join(answer.lower().split()) in " ".join(text.lower().split())
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == wanted


def as_dict(found: Calibration) -> dict[str, Any]:
    """Plain data for JSON; a threshold that is never exceeded is null."""
    alone = {} if found.large_alone is None else {"large_alone": _point(found.large_alone)}
    points = [_point(point) for point in found.frontier]
    return {
        "threshold": _finite(found.threshold),
        "large_share": round(found.large_share, 4),
        "frontier": points,
        **alone,
    }


def _point(point: FrontierPoint) -> dict[str, Any]:
    return {
        "threshold": _finite(point.threshold),
        "large_share": round(point.large_share, 4),
        "cost": round(point.cost, 4),
        "switches": point.switches,
        "tokens": point.tokens,
        "seconds": round(point.seconds, 3),
        **({} if point.quality is None else {"quality": round(point.quality, 4)}),
    }


def _finite(threshold: float) -> float | None:
    return threshold if math.isfinite(threshold) else None


def table(found: Calibration) -> str:
    """One line a threshold, the chosen one marked."""
    points = [*found.frontier, *([found.large_alone] if found.large_alone else [])]
    measured = found.large_alone is not None
    lines = ["   threshold  large share   cost  switches  tokens/s" + "  quality" * measured]
    lines += [
        f"{'->' if point.threshold == found.threshold else '  '} {point.threshold:9.4f}  {point.large_share:11.1%}  "
        f"{point.cost:5.3f}  {point.switches:8}  {point.tokens / point.seconds:8.1f}"
        + (f"  {point.quality:7.3f}" if measured else "")
        for point in points
    ]
    return "\n".join(lines)
