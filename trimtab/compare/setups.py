"""A side of a comparison as the command line writes it: `method:key=value,...`, or a TOML file."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .methods import KIND_OF, METHOD_OPTIONS, TRANSFORMERS, VLLM, check, options_of

WHERE: dict[str, type] = {"model": str, "engine": str, "dtype": str}
"""Keys of a set-up that say where it runs."""

SAMPLING: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
}
"""Keys of a set-up that say how tokens are drawn."""

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Setup:
    """What one side is.

    Attributes:
        text: as the command line wrote it.
        method: one of `METHOD_OPTIONS`.
        options: of the method.
        engine: `transformers`, `vllm`, or the URL of an OpenAI-compatible server, with its `/v1`.
        model: name; for a server the one that it calls so, empty for the only one it has.
        sampling: those of `SAMPLING` that were given.
        dtype: of the weights; None for the engine's default.
    """

    text: str
    method: str
    options: dict[str, Any]
    engine: str
    model: str
    sampling: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None

    @property
    def is_server(self) -> bool:
        """Whether it runs elsewhere."""
        return self.engine not in (TRANSFORMERS, VLLM)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.sampling.get("temperature") and self.method != "temperature"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, keys as `records.Comparison` names them."""
        return {
            "setup": self.text,
            "method": self.method,
            "options": self.options,
            "engine": self.engine,
            "model": self.model,
            "sampling": self.sampling,
            "dtype": self.dtype,
        }

    def with_options(self, options: Mapping[str, Any], label: str) -> Setup:
        """The same with other options or sampling, checked.

        Raises:
            InputError: they cannot be used.
        """
        own = {**self.options, **{name: value for name, value in options.items() if name not in SAMPLING}}
        sampling = {**self.sampling, **{name: value for name, value in options.items() if name in SAMPLING}}
        found = replace(self, options=own, sampling=sampling, text=f"{self.text} with {label}")
        _check(found)
        return found


def parse_setup(
    text: str,
    *,
    model: str | None,
    engine: str,
    sampling: Mapping[str, Any],
    dtype: str | None = None,
    whole: bool = True,
) -> Setup:
    """Read a set-up and refuse whatever can be refused before a model is loaded.

    Args:
        text: `method`, `method:key=value,...`, or a file that ends in `.toml` with `method`, the keys of `WHERE` and
            `SAMPLING`, and a table `options`. A key that takes several texts (`expert`, `negative`) is given several
            times; a text with a comma needs the file.
        model: that of `--model`.
        engine: that of `--engine`.
        sampling: of both sides; the set-up's own come first.
        dtype: that of `--dtype`.
        whole: whether to check its options; those of a sweep are not all there yet.

    Raises:
        InputError: names the set-up, what is wrong with it, and the remedy.
    """
    try:
        method, keys, options = _read_toml(Path(text)) if text.endswith(".toml") else _read_text(text)
        engine = keys.pop("engine", engine)
        model = keys.pop("model", model)
        server = engine.startswith(("http://", "https://"))
        dtype = keys.pop("dtype", None if server else dtype)
        if not server and engine not in (TRANSFORMERS, VLLM):
            near = difflib.get_close_matches(engine.lower(), (TRANSFORMERS, VLLM), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"engine is {engine!r}: use {TRANSFORMERS}, {VLLM}, or the URL of a server{hint}")
        if model is None and not server:
            raise InputError("it has no model: give --model, or model= in the set-up")
        found = Setup(text, method, options, engine.rstrip("/"), model or "", {**sampling, **keys}, dtype)
        if whole:
            _check(found)
    except InputError as error:
        raise InputError(f"set-up {text!r}: {error}") from None
    return found


def _check(setup: Setup) -> None:
    check(setup.method, setup.options, setup.engine)
    sampling = setup.sampling
    for name, least in (("temperature", 0), ("seed", 0), ("top_k", 1)):
        if name in sampling and sampling[name] < least:
            raise InputError(f"{name} is {sampling[name]:g}: give {least} or more")
    for name in ("top_p", "min_p"):
        if name in sampling and not 0 < sampling[name] <= 1:
            raise InputError(f"{name} is {sampling[name]:g}: give a number above 0 and up to 1")
    if sampling.get("repetition_penalty", 1) <= 0:
        raise InputError(f"repetition_penalty is {sampling['repetition_penalty']:g}: give a number above 0, 1 is off")
    if "temperature" in sampling and setup.method == "temperature" and not setup.is_server:
        raise InputError(f"temperature is {sampling['temperature']:g}: the method chooses it, leave it out")
    if setup.dtype is not None and setup.dtype not in _DTYPES:
        raise InputError(f"dtype is {setup.dtype!r}: use one of {', '.join(_DTYPES)}")
    if setup.dtype is not None and setup.is_server:
        raise InputError(f"dtype is {setup.dtype!r}: a server has its own, leave it out")


def _read_text(text: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    method, _, rest = text.partition(":")
    _known_method(method)
    keys: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} is no key=value: put texts with commas into a TOML file")
        name = name.strip().replace("-", "_")
        _known_key(method, name)
        found = convert(name, value.strip())
        into = keys if name in WHERE or name in SAMPLING else options
        if KIND_OF.get(name) is list:
            into[name] = (*into.get(name, ()), found)
        elif name in into:
            raise InputError(f"{name} is given twice: leave one out")
        else:
            into[name] = found
    return method, keys, options


def _read_toml(path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    try:
        content = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"it cannot be read ({error}): give a readable TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"it is not TOML: {error}") from error
    method = content.pop("method", None)
    if not isinstance(method, str):
        raise InputError(f"method is {method!r}: give one of {', '.join(METHOD_OPTIONS)}")
    _known_method(method)
    options = content.pop("options", {})
    if not isinstance(options, dict):
        raise InputError("options is no table: write them under [options]")
    for name in content:
        if name not in WHERE and name not in SAMPLING:
            where = " (it belongs under [options])" if name in METHOD_OPTIONS[method] else ""
            near = difflib.get_close_matches(name, [*WHERE, *SAMPLING, "method", "options"], n=1)
            hint = where or (f" (did you mean {near[0]}?)" if near else "")
            raise InputError(f"there is no key {name!r}{hint}")
    keys = {name: _typed(name, value) for name, value in content.items()}
    for name in options:
        _known_key(method, name)
    return method, keys, {name: _typed(name, value) for name, value in options.items()}


def _known_method(method: str) -> None:
    if method not in METHOD_OPTIONS:
        options_of(method, TRANSFORMERS)


def _known_key(method: str, name: str) -> None:
    known = [*METHOD_OPTIONS[method], *WHERE, *SAMPLING]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        own = ", ".join(METHOD_OPTIONS[method]) or "no option"
        raise InputError(f"{method} has no key {name!r}: it takes {own}, and {', '.join([*WHERE, *SAMPLING])}{hint}")


def convert(name: str, text: str) -> Any:
    """The value of a key from its text.

    Raises:
        InputError: it is no such value.
    """
    kind = {**KIND_OF, **WHERE, **SAMPLING}.get(name, str)
    if name == "alpha" and text == "dynamic":
        return text
    if not text:
        raise InputError(f"{name} is empty: give a value")
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{name} is {text!r}: use true or false")
        return text.lower() == "true"
    try:
        value = int(text) if kind is int else float(text) if kind is float else text
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {text!r}: give a {'whole number' if kind is int else 'number'}")
    return value


def _typed(name: str, value: Any) -> Any:
    """A value of TOML, which has types of its own."""
    kind = {**KIND_OF, **WHERE, **SAMPLING}.get(name, str)
    if kind is list:
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{name} is {value!r}: give a text, or a list of them")
        return tuple(texts)
    if name == "alpha" and value == "dynamic":
        return value
    right = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool) or (kind is str and not value):
        shown = {int: "a whole number", float: "a number", bool: "true or false", str: "some text"}[kind]
        raise InputError(f"{name} is {value!r}: give {shown}")
    return float(value) if kind is float else value
