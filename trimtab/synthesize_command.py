"""`trimtab synthesize`: a data set written with STEER."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command_support import (
    check_model_name,
    import_quietly,
    number,
    option,
    remember_debug,
    whole,
    working,
)
from .errors import InputError
from .measure_command import (
    JudgeOption,
    ReferenceOption,
    as_dict,
    check_judge,
    load_judge,
    measured,
    print_table,
)
from .synthesis.settings import Settings

if TYPE_CHECKING:
    from .synthesis.records import Record
    from .synthesis.run_file import RunFile
    from .synthesis.synthesizer import Synthesizer
    from .synthesis.template import Template

_STEER, _SAMPLING, _RUN = "STEER", "Sampling", "Machine"
_DEFAULTS = Settings()


def _whole(name: str, help: str, panel: str) -> Any:
    return option(name, help=help, panel=panel, parser=whole, metavar="N")


def _number(name: str, help: str, panel: str) -> Any:
    return option(name, help=help, panel=panel, parser=number, metavar="X")


def synthesize(
    expert: Annotated[str, option("--expert", metavar="NAME", help="Model that writes, as --model of generate.")],
    seeds: Annotated[
        Path, option("--seeds", metavar="FILE", help="Real texts to begin with: .jsonl with `text` and other fields.")
    ],
    template: Annotated[
        str,
        option("--template", metavar="FILE|TEXT", help="The expert's prompt, in Jinja2 over a seed's fields."),
    ],
    count: Annotated[int, option("--count", metavar="N", parser=whole, help="Texts that the data set shall have.")],
    output: Annotated[
        Path, option("-o", "--output", metavar="FILE", help="JSONL to write; the same command goes on with it.")
    ],
    base: Annotated[
        str | None,
        option("--base", metavar="NAME", help="Model that the expert was fine-tuned from; not needed with --gamma 0."),
    ] = None,
    as_json: Annotated[bool, option("--json", help="Print the measures as one JSON object.")] = False,
    debug: Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)] = False,
    gamma: Annotated[float, _number("--gamma", f"Away from the base; default {_DEFAULTS.gamma}.", _STEER)] = (
        _DEFAULTS.gamma
    ),
    eta: Annotated[float, _number("--eta", f"Away from the negatives; default {_DEFAULTS.eta}.", _STEER)] = (
        _DEFAULTS.eta
    ),
    balanced: Annotated[
        bool,
        option(
            "--balanced/--plain",
            panel=_STEER,
            help="Weigh the expert by 1 + gamma + eta (default), or as in the paper by 1 + gamma: eta flattens then.",
        ),
    ] = _DEFAULTS.balanced,
    plausibility: Annotated[
        float,
        _number(
            "--plausibility", "Only tokens of X times the expert's likeliest; default 0.1, 0 is off (paper).", _STEER
        ),
    ] = _DEFAULTS.plausibility or 0.0,
    negatives_per_row: Annotated[
        int, _whole("--negatives-per-row", "Negative prompts of a text, averaged; default 1.", _STEER)
    ] = _DEFAULTS.negatives_per_row,
    negative_examples: Annotated[
        int, _whole("--negative-examples", "Texts of the pool in a negative prompt; default 10.", _STEER)
    ] = _DEFAULTS.negative_examples,
    pool_growth: Annotated[
        bool,
        option(
            "--pool-growth/--no-pool-growth", panel=_STEER, help="Generated texts become negatives too; default yes."
        ),
    ] = _DEFAULTS.pool_growth,
    separator: Annotated[
        str, option("--separator", metavar="TEXT", panel=_STEER, help="Between negative texts; default an empty line.")
    ] = _DEFAULTS.separator,
    temperature: Annotated[float, _number("--temperature", "Above 0; default 1.", _SAMPLING)] = _DEFAULTS.temperature,
    top_k: Annotated[
        int, _whole("--top-k", f"Keep the K likeliest tokens, 0 all; default {_DEFAULTS.top_k}.", _SAMPLING)
    ] = _DEFAULTS.top_k,
    max_new_tokens: Annotated[
        int, _whole("--max-new-tokens", f"Most tokens of a text; default {_DEFAULTS.max_new_tokens}.", _SAMPLING)
    ] = _DEFAULTS.max_new_tokens,
    stop: Annotated[
        list[str] | None,
        option("--stop", metavar="TEXT", panel=_SAMPLING, help="A text ends before TEXT. May be given several times."),
    ] = None,
    chat: Annotated[
        bool, option("--chat", panel=_SAMPLING, help="Put prompts into the tokenizer's chat template.")
    ] = False,
    seed: Annotated[int, _whole("--seed", "Of everything drawn; default 0.", _SAMPLING)] = _DEFAULTS.seed,
    reference: ReferenceOption = None,
    judge: JudgeOption = None,
    batch_size: Annotated[
        int, _whole("--batch-size", f"Texts generated together; default {_DEFAULTS.batch_size}.", _RUN)
    ] = _DEFAULTS.batch_size,
    dtype: Annotated[
        str | None,
        option("--dtype", metavar="NAME", panel=_RUN, help="Default: float32 on the CPU, else the model's."),
    ] = None,
    device: Annotated[
        str | None, option("--device", metavar="NAME", panel=_RUN, help="Default: cuda if there is one, else cpu.")
    ] = None,
    threads: Annotated[int | None, _whole("--threads", "CPU threads; default: torch's choice.", _RUN)] = None,
) -> None:
    """Write a data set of texts in the expert's style that are unlike its base and unlike each other (STEER).

    The file grows batch by batch. After a kill the same command goes on, to the texts of a run that was not killed; a
    larger --count makes a finished data set larger.
    """
    from .synthesis.run_file import RunFile
    from .synthesis.template import Template
    from .synthesis.texts import fingerprint, read_texts

    settings = _settings(
        gamma=gamma,
        eta=eta,
        balanced=balanced,
        plausibility=plausibility or None,
        negatives_per_row=negatives_per_row,
        negative_examples=negative_examples,
        separator=separator,
        pool_growth=pool_growth,
        temperature=temperature,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        chat=chat,
        batch_size=batch_size,
        seed=seed,
    )
    if count < 1:
        raise InputError(f"--count is {count}: give a whole number of at least 1")
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}: give a whole number of at least 1")
    if base is None and gamma > 0:
        raise InputError(f"--base is missing with --gamma {gamma:g}: give the expert's base, or --gamma 0")
    check_model_name(expert, "--expert")
    if base is not None:
        check_model_name(base, "--base")
    check_judge(judge)
    real = [] if reference is None else [each["text"] for each in read_texts(reference, "--reference")]
    given = read_texts(seeds, "--seeds")
    filled = Template(read_template(template))
    check(given, filled, real, settings)
    begun = {
        "expert": expert,
        # with gamma 0 the base says nothing
        "base": base if gamma > 0 else None,
        "dtype": dtype,
        "device": device,
        "template": filled.source,
        "seeds": fingerprint(given),
        "reference": fingerprint([{"text": text} for text in real]),
        **dataclasses.asdict(settings),
    }
    start = time.perf_counter()
    with RunFile(output, begun, count, batch_size) as run:
        done = len(run.records)
        _say_resumed(run, count)
        with working(f"loading {expert}"):
            import_quietly(threads)
            judging = load_judge(judge)
            writer = None
            if done < count:
                writer = _writer(expert, base if gamma > 0 else None, dtype, device, settings)
        if writer is not None:
            _generate(writer, run, given, filled, real, count)
        seconds = time.perf_counter() - start
        records = list(run.records)
    found = measured([record.text for record in records], real, judging)
    if as_json:
        tokens = sum(record.tokens for record in records[done:])
        whole_run = {
            "output": str(output),
            "texts": len(records),
            "generated": len(records) - done,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "cut_negatives": _cut(records, settings),
            "measures": as_dict(found),
        }
        print(json.dumps(whole_run, ensure_ascii=False))
        return
    print_table(found)
    if cut := _cut(records, settings):
        print(f"{cut} negative prompts held fewer than {negative_examples} texts, to fit the context")
    print(f"{len(records)} texts in {output}")


# -- checks ------------------------------------------------------------------------------------------------------------


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**given)
    except InputError as error:
        # each message begins with the argument, which is the option's name
        name, _, rest = str(error).partition(" ")
        raise InputError(f"--{name.replace('_', '-')} {rest}") from None


def read_template(given: str) -> str:
    """The template's text, from the file of that name if there is one.

    Raises:
        InputError: it is empty, cannot be read, or looks like the name of a file that is not there.
    """
    path = Path(given).expanduser()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a name
        is_file = False
    if is_file:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--template {given!r} cannot be read ({error}): give a readable UTF-8 file") from error
    elif path.suffix in (".txt", ".j2", ".jinja", ".jinja2", ".md") and not any(mark in given for mark in " \n{"):
        raise InputError(f"--template is {given!r}, and there is no such file: give a file, or the text itself")
    else:
        text = given
    if not text.strip():
        raise InputError(f"--template {given!r} is empty: give the expert's prompt")
    return text


def check(seeds: list[dict[str, Any]], template: Template, reference: list[str], settings: Settings) -> None:
    """Refuse, before models are loaded, what would be refused with them."""
    from .synthesis.pool import Pool
    from .synthesis.schedule import random_for

    template.prompts(seeds)
    pool = Pool([seed["text"] for seed in seeds], reference)
    if settings.eta > 0:
        pool.draw(settings.negative_examples, random_for("check"))


# -- the run -----------------------------------------------------------------------------------------------------------


def _writer(expert: str, base: str | None, dtype: str | None, device: str | None, settings: Settings) -> Synthesizer:
    from .integrations.transformers import loading
    from .synthesis.synthesizer import Synthesizer

    model, tokenizer = loading.load(expert, dtype=dtype, device=device)
    base_model = None
    if base == expert:
        base_model = model
    elif base is not None:
        base_model, other = loading.load(base, dtype=dtype, device=device)
        if tokenizer.get_vocab() != other.get_vocab():
            raise InputError(
                f"--base {base} has another vocabulary than --expert {expert}: give models of one tokenizer"
            )
    return Synthesizer(model, base_model, tokenizer, settings)


def _generate(
    writer: Synthesizer, run: RunFile, seeds: list[dict[str, Any]], template: Template, real: list[str], count: int
) -> None:
    from tqdm import tqdm

    batches = writer.batches(seeds, run.counts, template=template, reference=real, done=list(run.records))
    try:
        with tqdm(total=count, initial=len(run.records), unit="text", file=sys.stderr) as bar:
            for batch in batches:
                run.append(batch)
                bar.update(len(batch))
    except KeyboardInterrupt:
        print(f"{run.path} has {len(run.records)} of {count} texts: the same command goes on", file=sys.stderr)
        raise


def _say_resumed(run: RunFile, count: int) -> None:
    torn, records = run.dropped
    if run.records or torn:
        repaired = f"; {records} texts and {torn} bytes of a batch that was cut off are made again" if torn else ""
        print(f"{run.path} has {len(run.records)} of {count} texts{repaired}", file=sys.stderr)


def _cut(records: list[Record], settings: Settings) -> int:
    return sum(len(positions) < settings.negative_examples for record in records for positions in record.negatives)
