"""`trimtab sweep`: one set-up at several settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .ab_command import (
    ChatOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    HtmlOption,
    JsonOption,
    LimitOption,
    MaxNewTokensOption,
    ModelOption,
    PromptsOption,
    RoundsOption,
    SeedOption,
    TaskOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    given_sampling,
    run_settings,
    write_results,
)
from .command_support import option


def sweep(
    setup: Annotated[str, option("--setup", metavar="SETUP", help="What is swept, as --a of ab: quantized, say.")],
    over: Annotated[
        list[str],
        option("--over", metavar="KEY=V,V,...", help="An option and its values: bits=4,8,16. May be given twice."),
    ],
    prompts: PromptsOption,
    baseline: Annotated[str, option("--baseline", metavar="SETUP", help="Compared with; default none.")] = "none",
    model: ModelOption = None,
    limit: LimitOption = None,
    task: TaskOption = None,
    engine: EngineOption = "transformers",
    max_new_tokens: MaxNewTokensOption = 128,
    rounds: RoundsOption = None,
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
    plot: Annotated[Path | None, option("--plot", metavar="FILE", help="A .png, .svg or .pdf.", panel="Output")] = None,
    debug: DebugOption = False,
) -> None:
    """Measure one set-up at several settings beside a baseline, and find the frontier of speed and quality.

    All take turns prompt by prompt. Quality is accuracy where the prompts have answers, else how much of the baseline's
    text is written before the first difference, which says something of greedy decoding alone.
    """
    from rich.console import Console

    from .compare.session import check_output, check_packages
    from .compare.setups import parse_setup
    from .compare.sweep import BASELINE, parse_over, points_of

    check_output("--json", json_file)
    check_output("--html", html)
    check_output("--plot", plot, (".png", ".svg", ".pdf"))
    sampling = given_sampling(temperature, top_p, top_k)
    settings = run_settings(prompts, limit, task, max_new_tokens, rounds, None, seed, chat, device, threads)
    swept = parse_setup(setup, model=model, engine=engine, sampling=sampling, dtype=dtype, whole=False)
    beside = parse_setup(baseline, model=model, engine=engine, sampling=sampling, dtype=dtype)
    values = parse_over(over, swept)
    points = points_of(swept, values)
    settings.read()
    check_packages([beside, *(own for _, own in points.values())], plot=plot is not None)
    from .compare.sweep import sweep as measure_sweep
    from .compare.terminal import Running, show_sweep

    running = Running([BASELINE, *points])
    found = measure_sweep(swept, values, beside, settings, json_file=json_file, seen=running.see, started=running.bar)
    show_sweep(found, Console(highlight=False))
    write_results(found.as_dict(), json_file, html)
    if plot is not None:
        from .compare.sweep_plot import draw_sweep

        draw_sweep(found, plot.expanduser())
