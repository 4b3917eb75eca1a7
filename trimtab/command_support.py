"""What the commands share: their options' parsers, the model's name, the prompt as ids."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .errors import InputError
from .integrations.transformers.embedded import MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def whole(text: str) -> int:
    """For typer: a whole number, with a message that says so."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"is {text!r}: give a whole number") from None


def number(text: str) -> float:
    """For typer: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"is {text!r}: give a number")
    return value


def remember_debug(context: typer.Context, debug: bool) -> bool:
    """For typer: `--debug`, seen before anything else can fail."""
    context.find_root().obj["debug"] = debug
    return debug


def option(*names: str, help: str, panel: str | None = None, **rest: Any) -> Any:
    """`typer.Option` whose help states its own default."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **rest)


def import_quietly(threads: int | None) -> None:
    """Import torch and transformers so that only their errors are heard."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read at import; a log file wants lines, not hundreds of bars
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import enable_progress_bars

        enable_progress_bars()  # switched off with transformers' own; a download of gigabytes should show itself
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on a terminal what the wait is for, and wipe it away afterwards.

    A plain line instead of rich's spinner, since conversion and quantising write to stderr meanwhile.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    # the cursor stays at the line's start, so that whatever else is written there replaces it
    print(f"{what} ...\x1b[K\r", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\x1b[K", end="", file=sys.stderr, flush=True)


def check_model_name(name: str, flag: str = "--model") -> None:
    """Refuse an obvious misspelling of an embedded model; anything else is for `load` to find.

    Raises:
        InputError: suggests the nearest name.
    """
    if not name.strip():
        raise InputError(f"{flag} is {name!r}: give one of {', '.join(MODELS)}, a path, or a hub id")
    if name in MODELS or "/" in name or Path(name).exists():
        return
    if near := difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.75):
        raise InputError(f"{flag} is {name!r}, which is no embedded model and no path: did you mean {near[0]!r}?")


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool | None, system: str | None, model_name: str
) -> dict[str, Any]:
    """`input_ids` and `attention_mask` of a prompt, through the chat template if there is one or it is asked for.

    Raises:
        InputError: a chat template is needed and missing, or refuses the messages.
    """
    templated = bool(tokenizer.chat_template)
    if not templated and (chat or system is not None):
        asked = "--chat" if chat else f"--system {system!r}"
        raise InputError(f"{asked} is given, and {model_name} has no chat template: leave it out")
    if templated and chat is not False:
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": text})
        return encode_messages(tokenizer, messages, model_name=model_name)
    return _ids(tokenizer(text, return_tensors="pt"))


def encode_messages(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, model_name: str
) -> dict[str, Any]:
    """`input_ids` and `attention_mask` of a chat, the model's turn begun.

    Raises:
        InputError: there is no chat template, or it refuses the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError(f"the prompt is a chat, and {model_name} has no chat template: give it as text")
    try:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    except TemplateError as error:
        raise InputError(f"the chat template of {model_name} refuses the messages ({error}): try --no-chat") from error
    return _ids(encoded)


def _ids(encoded: Any) -> dict[str, Any]:
    # some tokenizers add token types, which no decoder-only model takes
    return {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
