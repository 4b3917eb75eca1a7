"""`trimtab ab`: two set-ups on the same prompts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from .command_support import number, option, remember_debug, whole
from .errors import InputError

_SAMPLING, _RUN, _OUTPUT = "Sampling", "Run", "Output"

ModelOption = Annotated[
    str | None, option("--model", metavar="NAME", help="Of the sides that name none; as --model of generate.")
]
PromptsOption = Annotated[
    Path, option("--prompts", metavar="FILE", help="JSONL: prompt, turns, messages, or GSM8K and SVAMP as they come.")
]
LimitOption = Annotated[
    int | None, option("--limit", metavar="N", parser=whole, help="Prompts to take, evenly over their groups.")
]
TaskOption = Annotated[
    str | None,
    option(
        "--task",
        metavar="NAME",
        help="number, exact, contains, gsm8k, svamp, or FILE.py:FUNCTION; default: what the answers suggest.",
    ),
]
EngineOption = Annotated[
    str, option("--engine", metavar="NAME", help="transformers (default), vllm, or the URL of a server with its /v1.")
]
MaxNewTokensOption = Annotated[
    int, option("--max-new-tokens", metavar="N", parser=whole, help="Most tokens of a text; default 128.", panel=_RUN)
]
RoundsOption = Annotated[
    int | None,
    option(
        "--rounds",
        metavar="N",
        parser=whole,
        help="Times that a prompt is decoded by each side; default 1, with --until up to 20.",
        panel=_RUN,
    ),
]
ChatOption = Annotated[
    bool | None,
    option("--chat/--no-chat", help="Use the chat template; default: if the tokenizer has one.", panel=_RUN),
]
DtypeOption = Annotated[
    str | None, option("--dtype", metavar="NAME", help="As of generate; or dtype= in a set-up.", panel=_RUN)
]
DeviceOption = Annotated[
    str | None, option("--device", metavar="NAME", help="Default: cuda if there is one, else cpu.", panel=_RUN)
]
ThreadsOption = Annotated[
    int | None, option("--threads", metavar="N", parser=whole, help="CPU threads; default: torch's choice.", panel=_RUN)
]
TemperatureOption = Annotated[
    float | None,
    option("--temperature", metavar="X", parser=number, help="0 (default) is greedy, more samples.", panel=_SAMPLING),
]
TopPOption = Annotated[
    float | None,
    option("--top-p", metavar="X", parser=number, help="Keep the likeliest tokens up to this mass.", panel=_SAMPLING),
]
TopKOption = Annotated[
    int | None, option("--top-k", metavar="N", parser=whole, help="Keep the likeliest tokens.", panel=_SAMPLING)
]
SeedOption = Annotated[
    int, option("--seed", metavar="N", parser=whole, help="Of sampling, the same for all sides.", panel=_SAMPLING)
]
JsonOption = Annotated[
    Path | None,
    option(
        "--json",
        metavar="FILE",
        panel=_OUTPUT,
        help="Write everything; beside it a journal, with which a run that was killed goes on.",
    ),
]
HtmlOption = Annotated[Path | None, option("--html", metavar="FILE", help="Write a report.", panel=_OUTPUT)]
DebugOption = Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)]


def ab(
    a: Annotated[
        str, option("--a", metavar="SETUP", help="METHOD:KEY=VALUE,... or a .toml file: none, say, for plain decoding.")
    ],
    b: Annotated[str, option("--b", metavar="SETUP", help="The other side: quantized:mode=lossless,bits=8, say.")],
    prompts: PromptsOption,
    model: ModelOption = None,
    limit: LimitOption = None,
    task: TaskOption = None,
    engine: EngineOption = "transformers",
    max_new_tokens: MaxNewTokensOption = 128,
    rounds: RoundsOption = None,
    until: Annotated[
        str | None,
        option("--until", metavar="X%", help="Go on until the speed's interval is +-X% or narrower.", panel=_RUN),
    ] = None,
    chat: ChatOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    html: HtmlOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare two set-ups on the same prompts: speed, time to the first token, length, accuracy.

    They take turns prompt by prompt. METHOD is none, quantized, ead, fusion, steer, prompt_lookup, assisted or
    temperature; model=, engine=, dtype= and sampling settings may stand in a set-up too. Figures come with 95%
    intervals over prompts, accuracy with McNemar's exact test.
    """
    from rich.console import Console

    from .compare.session import check_output, check_packages
    from .compare.setups import parse_setup

    check_output("--json", json_file)
    check_output("--html", html)
    sampling = given_sampling(temperature, top_p, top_k)
    settings = run_settings(prompts, limit, task, max_new_tokens, rounds, share(until), seed, chat, device, threads)
    sides = {
        side: parse_setup(text, model=model, engine=engine, sampling=sampling, dtype=dtype)
        for side, text in (("a", a), ("b", b))
    }
    settings.read()
    check_packages(list(sides.values()))
    from .compare.ab import compare
    from .compare.terminal import Running, show

    running = Running(list(sides))
    comparison = compare(sides["a"], sides["b"], settings, json_file=json_file, seen=running.see, started=running.bar)
    show(comparison, Console(highlight=False))
    write_results(comparison.as_dict(), json_file, html)


def given_sampling(temperature: float | None, top_p: float | None, top_k: int | None) -> dict[str, Any]:
    """The sampling settings of all sides that were given."""
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    return {name: value for name, value in given.items() if value is not None}


def run_settings(
    prompts: Path,
    limit: int | None,
    task: str | None,
    max_new_tokens: int,
    rounds: int | None,
    until: float | None,
    seed: int,
    chat: bool | None,
    device: str | None,
    threads: int | None,
) -> Any:
    """`compare.session.Settings`, checked.

    Raises:
        InputError: a number is out of range.
    """
    from .compare.session import Settings

    if rounds is None:
        rounds = 1 if until is None else 20
    settings = Settings(prompts, limit, task, max_new_tokens, rounds, until, seed, chat, device, threads)
    settings.check()
    return settings


def write_results(content: dict[str, Any], json_file: Path | None, html: Path | None) -> None:
    """A comparison or a sweep as JSON and as a report, where they were asked for."""
    if json_file is not None:
        from .compare.session import write_json

        write_json(json_file, content)
    if html is not None:
        from .compare.report import write_html

        write_html(content, html.expanduser())


def share(text: str | None) -> float | None:
    """`2%` as 0.02.

    Raises:
        InputError: it is no share of at most 100%.
    """
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = math.nan
    if not text.endswith("%") or not 0 < value <= 1:
        raise InputError(f"--until is {text!r}: give a percentage such as 2%")
    return value
