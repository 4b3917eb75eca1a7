"""`trimtab generate`: text from a prompt, streamed or as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command_support import check_model_name, encode, import_quietly, number, option, remember_debug, whole, working
from .errors import InputError
from .generate_methods import DYNAMIC, METHODS, at_least, check_method, flag, model_names, one_of, unused
from .generate_methods import prepare as prepare_method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .integrations.transformers.quantized_verification import VerificationStats

DTYPES = ("float32", "bfloat16", "float16")

# -- options ---------------------------------------------------------------------------------------------------------


def _whole_option(name: str, help: str, panel: str | None = None) -> Any:
    return option(name, help=help, panel=panel, parser=whole, metavar="N")


def _number_option(name: str, help: str, panel: str = "Sampling") -> Any:
    return option(name, help=help, panel=panel, parser=number, metavar="X")


def _alpha(text: str) -> float | str:
    """For typer: `dynamic`, or a number."""
    return DYNAMIC if text == DYNAMIC else number(text)


_METHOD, _SAMPLING, _PROMPT = "Method: quantized", "Sampling", "Prompt"
_EAD, _FUSION, _STEER = "Method: ead", "Method: fusion", "Method: steer"


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The prompt, or - for stdin (less one newline at its end).", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="An embedded model, a directory, a .gguf file or a hub id.")
    ] = "smollm2-135m",
    method: Annotated[
        str, typer.Option(metavar="|".join(METHODS), help="Decoding method; none is plain transformers.")
    ] = "quantized",
    max_new_tokens: Annotated[
        int, typer.Option(parser=whole, metavar="N", help="Most tokens to generate; the model's context ends it too.")
    ] = 128,
    stop: Annotated[
        list[str] | None,
        option("--stop", metavar="TEXT", help="Stop once TEXT appears, and keep it. May be given several times."),
    ] = None,
    as_json: Annotated[bool, option("--json", help="Print one JSON object at the end instead of streaming.")] = False,
    dtype: Annotated[
        str | None,
        option("--dtype", metavar="NAME", help=f"{', '.join(DTYPES)}; default: float32 on the CPU, else the model's."),
    ] = None,
    device: Annotated[
        str | None, option("--device", metavar="NAME", help="Default: cuda if there is one, else cpu.")
    ] = None,
    threads: Annotated[int | None, _whole_option("--threads", "CPU threads; default: torch's choice.")] = None,
    debug: Annotated[bool, option("--debug", help="Show tracebacks.", callback=remember_debug, is_eager=True)] = False,
    prompt_file: Annotated[
        Path | None,
        option(
            "--prompt-file",
            metavar="FILE",
            panel=_PROMPT,
            help="Read the prompt from FILE (UTF-8, less one newline at its end).",
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        option("--chat/--no-chat", panel=_PROMPT, help="Use the chat template; default: if the tokenizer has one."),
    ] = None,
    system: Annotated[str | None, option("--system", metavar="TEXT", panel=_PROMPT, help="System message.")] = None,
    mode: Annotated[
        str | None,
        option(
            "--mode",
            metavar="quantized|lossless",
            panel=_METHOD,
            help="quantized (default): all in low bits; lossless: the full-precision model's own text.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        option(
            "--bits",
            metavar="8|4|16",
            panel=_METHOD,
            parser=whole,
            help="Weights of the verifying passes; default 8, 16 is the model's own precision.",
        ),
    ] = None,
    draft_length: Annotated[int | None, _whole_option("--draft-length", "Tokens to draft; default 5.", _METHOD)] = None,
    window: Annotated[
        int | None,
        _whole_option("--window", "lossless: tokens between checks, default 8; ead: in the mean, default 5.", _METHOD),
    ] = None,
    max_ngram: Annotated[
        int | None, _whole_option("--max-ngram", "Longest n-gram that prompt lookup matches; default 3.", _METHOD)
    ] = None,
    drafter: Annotated[
        str | None,
        option("--drafter", metavar="prompt_lookup|none", panel=_METHOD, help="Default prompt_lookup."),
    ] = None,
    activation_bits: Annotated[
        int | None,
        option("--activation-bits", metavar="16|8", panel=_METHOD, parser=whole, help="With 8 bits; default 16."),
    ] = None,
    outliers: Annotated[
        int | None, _whole_option("--outliers", "Channels kept in full precision; default 32.", _METHOD)
    ] = None,
    quantize_head: Annotated[
        bool, option("--quantize-head", panel=_METHOD, help="Quantise the output head too.")
    ] = False,
    small: Annotated[
        str | None,
        option("--small", metavar="NAME", panel=_EAD, help="The small model, or low-bit for 8-bit weights of --model."),
    ] = None,
    threshold: Annotated[
        float | None, _number_option("--threshold", "Bits; `trimtab calibrate ead` finds it.", _EAD)
    ] = None,
    decay: Annotated[
        float | None, _number_option("--decay", "Exponential average instead of --window: 0.8, say.", _EAD)
    ] = None,
    small_base: Annotated[
        str | None,
        option("--small-base", metavar="NAME", panel=_FUSION, help="The model that the experts were fine-tuned from."),
    ] = None,
    expert: Annotated[
        list[str] | None,
        option("--expert", metavar="NAME", panel=_FUSION, help="A fine-tuned --small-base; repeat for several."),
    ] = None,
    alpha: Annotated[
        float | None,
        option(
            "--alpha",
            metavar="X|dynamic",
            panel=_FUSION,
            parser=_alpha,
            help="How strongly the experts act; default dynamic, 1 is proxy tuning.",
        ),
    ] = None,
    base: Annotated[
        str | None, option("--base", metavar="NAME", panel=_STEER, help="The model that --model was fine-tuned from.")
    ] = None,
    gamma: Annotated[
        float | None, _number_option("--gamma", "How far away from the base; default 0.2.", _STEER)
    ] = None,
    eta: Annotated[
        float | None,
        _number_option("--eta", "How far away from the negatives; default 0.6, without negatives 0.", _STEER),
    ] = None,
    negative: Annotated[
        list[str] | None,
        option("--negative", metavar="TEXT", panel=_STEER, help="A negative prompt. May be given several times."),
    ] = None,
    plausibility: Annotated[
        float | None,
        _number_option("--plausibility", "Keep tokens of this share of the likeliest one's probability.", _STEER),
    ] = None,
    temperature: Annotated[
        float | None, _number_option("--temperature", "0 (default) is greedy, more than 0 samples.")
    ] = None,
    top_k: Annotated[int | None, _whole_option("--top-k", "Keep the K likeliest tokens.", _SAMPLING)] = None,
    top_p: Annotated[float | None, _number_option("--top-p", "Keep the likeliest tokens up to this mass.")] = None,
    min_p: Annotated[
        float | None, _number_option("--min-p", "Keep tokens with this share of the likeliest one's.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, _number_option("--repetition-penalty", "More than 1 discourages; 1 is off.")
    ] = None,
    seed: Annotated[int | None, _whole_option("--seed", "Makes sampling repeatable.", _SAMPLING)] = None,
) -> None:
    """Generate text from a prompt.

    Text goes to stdout as it comes, one line of statistics to stderr.
    """
    # everything that can be refused is refused here, before the seconds of importing torch and loading a model
    given = {
        "mode": mode,
        "bits": bits,
        "draft_length": draft_length,
        "window": window,
        "max_ngram": max_ngram,
        "drafter": drafter,
        "activation_bits": activation_bits,
        "outliers": outliers,
        "quantize_head": quantize_head or None,
        "small": small,
        "threshold": threshold,
        "decay": decay,
        "small_base": small_base,
        "expert": expert or None,
        "alpha": alpha,
        "base": base,
        "gamma": gamma,
        "eta": eta,
        "negative": negative or None,
        "plausibility": plausibility,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    check_method(method, settings)
    sampling = check_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    at_least("max_new_tokens", max_new_tokens, 1)
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"--seed is {seed}: give a whole number from 0 to 2**63 - 1")
    if threads is not None:
        at_least("threads", threads, 1)
    if dtype is not None:
        one_of("dtype", dtype, DTYPES)
    if stop and "" in stop:
        raise InputError("--stop is '': give the text to stop at, or leave it out")
    if system is not None and chat is False:
        raise InputError(f"--system is {system!r} with --no-chat: a system message needs the chat template")
    for name in (model, *model_names(settings)):
        check_model_name(name)
    text = read_prompt(prompt, prompt_file)

    with working(f"loading {model}"):
        import_quietly(threads)
        from .integrations.transformers.loading import load

        lm, tokenizer = load(model, dtype=dtype, device=device)
    inputs = encode(tokenizer, text, chat=chat, system=system, model_name=model)
    inputs = {name: tensor.to(lm.device) for name, tensor in inputs.items()}
    room = _room(lm, inputs["input_ids"].shape[1])
    with working(f"quantising {model}" if method == "quantized" else f"preparing {method}"):
        prepared = prepare_method(
            method,
            settings,
            lm,
            lambda name: load(name, dtype=dtype, device=device).model,
            lambda negative: encode(tokenizer, negative, chat=chat, system=system, model_name=model)["input_ids"][
                0
            ].tolist(),
        )

    result, output = _run(
        lm,
        tokenizer,
        inputs,
        prepared.options,
        sampling | {"max_new_tokens": min(max_new_tokens, room)},
        stop=stop,
        seed=seed,
        stream=not as_json,
    )
    stats = prepared.stats(output)
    if as_json:
        print(json.dumps({"model": model, "method": method, **result, "stats": stats}, ensure_ascii=False))
        return
    line = summary(result["new_tokens"], result["seconds"], output.stats if method == "quantized" else None)
    more = prepared.summary(stats) if stats is not None else ""
    _print_statistics(f"{line} | {more}" if more else line)


# -- checks ----------------------------------------------------------------------------------------------------------


def check_sampling(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> dict[str, Any]:
    """The sampling options as `generate` takes them; greedy unless the temperature is more than 0.

    Raises:
        InputError: a value is out of range, or given without a temperature.
    """
    if temperature is not None and temperature < 0:
        raise InputError(f"--temperature is {temperature:g}: give 0 for greedy decoding, or more")
    if top_k is not None:
        at_least("top_k", top_k, 1)
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise InputError(f"{flag(name)} is {share:g}: give a number above 0 and up to 1")
    if repetition_penalty is not None and repetition_penalty <= 0:
        raise InputError(f"--repetition-penalty is {repetition_penalty:g}: give a number above 0, 1 is off")
    filters = {
        name: value for name, value in (("top_k", top_k), ("top_p", top_p), ("min_p", min_p)) if value is not None
    }
    if temperature is None:
        for name, value in filters.items():
            unused(name, value, "greedy decoding", "add --temperature 1, say")
    chosen: dict[str, Any] = {} if repetition_penalty is None else {"repetition_penalty": repetition_penalty}
    # a temperature of 0 turns the filters off without complaint: scripts sweep it with the rest held fixed
    return chosen | (
        {"do_sample": True, "temperature": temperature, **filters} if temperature else {"do_sample": False}
    )


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the argument, from stdin (`-`) or from a file.

    Raises:
        InputError: none, two or an empty one is given, or it cannot be read.
    """
    if prompt is not None and file is not None:
        raise InputError(f"PROMPT and --prompt-file {str(file)!r} are both given: leave one out")
    if file is not None:
        source = f"--prompt-file {str(file)!r}"
        try:
            data = file.expanduser().read_bytes()
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error.strerror}): give a readable file") from error
    elif prompt == "-":
        source, data = "PROMPT '-' (stdin)", sys.stdin.buffer.read()
    elif prompt:
        return prompt
    else:
        state = "missing" if prompt is None else "empty"
        raise InputError(f"PROMPT is {state}: give some text, - to read stdin, or --prompt-file FILE")
    try:
        # editors and echo end a text with a newline that nobody means
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 (byte {error.start}): convert it, with iconv say") from error
    if not text:
        raise InputError(f"{source} is empty: give some text")
    return text


# -- the run ---------------------------------------------------------------------------------------------------------


def _room(model: PreTrainedModel, prompt_tokens: int) -> int:
    """New tokens that fit into the model's context."""
    from .integrations.transformers.runner import context_length

    limit = context_length(model)
    if limit is not None and prompt_tokens >= limit:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens and the model's context is {limit}: shorten the prompt by at least "
            f"{prompt_tokens - limit + 1} tokens"
        )
    return sys.maxsize if limit is None else limit - prompt_tokens


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: dict[str, Any],
    method: dict[str, Any],
    options: dict[str, Any],
    *,
    stop: list[str] | None,
    seed: int | None,
    stream: bool,
) -> tuple[dict[str, Any], Any]:
    """What there is to say about a text, and what `generate` returned."""
    import torch
    from transformers import TextStreamer

    from .interrupts import Interrupts

    options = options | method
    if custom := method.get("custom_generate"):
        custom.stop_strings, custom.tokenizer = stop or None, tokenizer
    elif stop:
        options |= {"stop_strings": stop, "tokenizer": tokenizer}
    if stream:
        options["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    if seed is not None:
        torch.manual_seed(seed)
    start = time.perf_counter()
    with Interrupts() as interrupts:
        output = model.generate(**inputs, **options, stopping_criteria=[interrupts], return_dict_in_generate=True)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds = time.perf_counter() - start
    prompt_tokens = inputs["input_ids"].shape[1]
    tokens = output.sequences[0, prompt_tokens:].tolist()
    result = {
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
        "token_ids": tokens,
        "prompt_tokens": prompt_tokens,
        "new_tokens": len(tokens),
        "seconds": round(seconds, 6),
        "tokens_per_second": round(len(tokens) / seconds, 3),
    }
    return result, output


# -- what is shown ---------------------------------------------------------------------------------------------------


def summary(new_tokens: int, seconds: float, stats: VerificationStats | None) -> str:
    """One line about a run."""
    parts = [f"{new_tokens} tokens in {seconds:.2f} s, {new_tokens / seconds:.1f} tok/s"]
    if stats is not None:
        if stats.row_passes:
            parts.append(f"acceptance {stats.acceptance_length:.2f}")
        if stats.reverified:
            parts[-1] += f", {stats.confirmed / stats.reverified:.0%} kept"
        total = stats.seconds.get("total") or seconds
        share = {key: f"{seconds / total:.0%}" for key, seconds in stats.seconds.items()}
        passes = [f"prefill {share['prefill']}"] + [
            f"{stats.passes[key]} {name} {share[key]}"
            for key, name in (("low_bit", "low-bit"), ("full", "full"))
            if stats.passes[key]
        ]
        parts.append(f"passes: {', '.join(passes)} of time")
    return " | ".join(parts)


def _print_statistics(line: str) -> None:
    if not sys.stderr.isatty():
        print(line, file=sys.stderr)
        return
    from rich.console import Console

    Console(stderr=True, highlight=False).print(line, style="dim", soft_wrap=True)
