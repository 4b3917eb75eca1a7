"""The methods behind `trimtab generate --method`: which options each takes, and what it hands to `model.generate`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("quantized", "ead", "fusion", "steer", "none")
LOW_BIT = "low-bit"
DYNAMIC = "dynamic"

Load = Callable[[str], "PreTrainedModel"]
Encode = Callable[[str], list[int]]

OPTIONS: dict[str, tuple[str, ...]] = {
    "quantized": (
        *("mode", "bits", "draft_length", "window", "max_ngram", "drafter", "activation_bits", "outliers"),
        "quantize_head",
    ),
    "ead": ("small", "threshold", "window", "decay"),
    "fusion": ("small_base", "expert", "alpha"),
    "steer": ("base", "gamma", "eta", "negative", "plausibility"),
    "none": (),
}
"""By the names of the options, dashes as underscores; one name may serve two methods."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "mode": ("quantized", "lossless"),
    "bits": (8, 4, 16),
    "drafter": ("prompt_lookup", "none"),
    "activation_bits": (16, 8),
}
_LEAST = {"draft_length": 1, "max_ngram": 1, "window": 1, "outliers": 0}

KINDS: dict[str, type] = {
    **dict.fromkeys(("bits", "draft_length", "window", "max_ngram", "activation_bits", "outliers"), int),
    **dict.fromkeys(("threshold", "decay", "gamma", "eta", "plausibility", "alpha"), float),
    **dict.fromkeys(("expert", "negative"), list),
    "quantize_head": bool,
}
"""Of an option's value, where it is not text. `alpha` may be `dynamic` as well; lists are of texts."""

REQUIRED = {"ead": ("small", "threshold"), "fusion": ("small_base", "expert"), "steer": ("base",)}


@dataclass
class Prepared:
    """A method over loaded models.

    Attributes:
        options: for `model.generate`.
        stats: from what `generate` returned to plain data, or None if the method counts nothing.
        summary: one line about these, perhaps empty.
        trace: from what `generate` returned to a dict for each new token: what the method did there, under the names
            of `trimtab.compare.records.TracedToken`. Empty where the method cannot say.
    """

    options: dict[str, Any]
    stats: Callable[[Any], dict[str, Any] | None] = lambda output: None
    summary: Callable[[dict[str, Any]], str] = lambda stats: ""
    trace: Callable[[Any], list[dict[str, Any]]] = lambda output: []


def check_method(method: str, settings: dict[str, Any]) -> None:
    """Refuse settings of a method that are out of range, or that it would silently ignore.

    Args:
        method: one of `METHODS`.
        settings: the options given, by their names with underscores.

    Raises:
        InputError: names the option, its value and the remedy.
    """
    one_of("method", method, METHODS)
    for name, value in settings.items():
        if name not in OPTIONS[method]:
            owner = next(other for other, names in OPTIONS.items() if name in names)
            unused(name, value, f"--method {method}", f"use --method {owner}")
    for name, value in settings.items():
        if name in CHOICES:
            one_of(name, value, CHOICES[name])
        if name in _LEAST:
            at_least(name, value, _LEAST[name])
    if method == "quantized":
        _check_quantized(settings)
    elif method != "none":
        check_values(method, settings)


def _check_quantized(settings: dict[str, Any]) -> None:
    if settings.get("bits") == 16:
        for name in ("mode", "window", "activation_bits", "outliers", "quantize_head"):
            if name in settings:
                unused(name, settings[name], "--bits 16", "use --bits 8 or 4")
    if settings.get("bits") == 4 and "activation_bits" in settings:
        unused("activation_bits", settings["activation_bits"], "--bits 4", "use --bits 8")
    if settings.get("mode") != "lossless" and "window" in settings:
        unused("window", settings["window"], "--mode quantized", "use --mode lossless")
    if settings.get("drafter") == "none":
        for name in ("draft_length", "max_ngram"):
            if name in settings:
                unused(name, settings[name], "--drafter none", "use --drafter prompt_lookup")


def check_values(method: str, settings: dict[str, Any]) -> None:
    """Refuse what a method lacks, and values that it would refuse after the models are loaded.

    Args:
        method: `ead`, `fusion` or `steer`.
        settings: the options given, of this method.

    Raises:
        InputError: names the option, its value and the remedy.
    """
    for name in REQUIRED[method]:
        if not settings.get(name):
            if name == "threshold" and settings.get(name) is not None:
                continue
            raise InputError(f"--{name.replace('_', '-')} is missing: --method {method} needs it")
    for name in ("threshold", "gamma", "eta", "decay", "alpha"):
        value = settings.get(name)
        if value is not None and value != DYNAMIC and value < 0:
            raise InputError(f"--{name} is {value:g}: give 0 or more")
    if settings.get("decay", 0) >= 1:
        raise InputError(f"--decay is {settings['decay']:g}: give a number below 1")
    if "plausibility" in settings and not 0 < settings["plausibility"] <= 1:
        raise InputError(f"--plausibility is {settings['plausibility']:g}: give a number above 0, at most 1")
    if method == "steer" and settings.get("eta", 0) > 0 and not settings.get("negative"):
        raise InputError(f"--eta is {settings['eta']:g} without --negative TEXT: give one, or leave --eta out")
    if "" in settings.get("negative", ()):
        raise InputError("--negative is '': give some text")


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is not allowed, and suggest the nearest.

    Raises:
        InputError: names the option.
    """
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value).lower(), [str(choice) for choice in allowed], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"{flag(name)} is {value!r}: use one of {', '.join(map(str, allowed))}{hint}")


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Raises:
        InputError: names the option.
    """
    if value < least:
        raise InputError(f"{flag(name)} is {value}: give a whole number of at least {least}")


def unused(name: str, value: object, where: str, remedy: str) -> None:
    """Refuse an option that would be ignored.

    Raises:
        InputError: always; names the option, why it would be, and the remedy.
    """
    shown = flag(name) if value is True else f"{flag(name)} {value}"
    raise InputError(f"{shown} has no effect with {where}: leave it out, or {remedy}")


def flag(name: str) -> str:
    """An option as the command line has it."""
    return "--" + name.replace("_", "-")


def model_names(settings: dict[str, Any]) -> list[str]:
    """The models beside the one of `--model`."""
    names = [settings[name] for name in ("small", "small_base", "base") if settings.get(name)]
    return [name for name in [*names, *settings.get("expert", ())] if name != LOW_BIT]


def prepare(
    method: str,
    settings: dict[str, Any],
    model: PreTrainedModel,
    load: Load,
    encode: Encode,
) -> Prepared:
    """Load what a method needs beside `model`.

    Args:
        method: one of `METHODS`.
        settings: as `check_method` let them pass.
        model: whose `generate` will be called.
        load: a model by its name, where `model` is.
        encode: token ids of a negative prompt.

    Raises:
        InputError: models that do not go together.
    """
    if method == "none":
        return Prepared({})
    found = {"quantized": _quantized, "ead": _ead, "fusion": _fusion, "steer": _steer}
    return found[method](settings, model, load, encode)


def _quantized(settings: dict[str, Any], model: PreTrainedModel, load: Load, encode: Encode) -> Prepared:
    from .integrations.transformers.quantized_verification import QuantizedVerification

    method = QuantizedVerification(**settings)
    method.prepare(model)
    return Prepared(
        {"custom_generate": method},
        lambda output: output.stats.as_dict(),
        trace=lambda output: [{"accepted": drafted} for drafted in output.stats.from_draft[0]],
    )


def _ead(settings: dict[str, Any], model: PreTrainedModel, load: Load, encode: Encode) -> Prepared:
    from .integrations.transformers.entropy_adaptive import EntropyAdaptive

    small: Any = LOW_BIT if settings["small"] == LOW_BIT else load(settings["small"])
    gate = {name: settings[name] for name in ("window", "decay") if name in settings}
    method = EntropyAdaptive(small, settings["threshold"], **gate)
    method.prepare(model)
    return Prepared(
        {"custom_generate": method},
        lambda output: output.stats.as_dict(),
        lambda stats: (
            f"large {stats['large_share']:.0%} of tokens, {stats['switches']} switches, cost {stats['cost']:.2f}"
        ),
        lambda output: [{"entropy": entropy, "model": speaker} for entropy, speaker in output.stats.rows[0].trace],
    )


def _fusion(settings: dict[str, Any], model: PreTrainedModel, load: Load, encode: Encode) -> Prepared:
    from .integrations.transformers.logit_fusion import LogitFusion

    fusion = LogitFusion(
        load(settings["small_base"]), [load(name) for name in settings["expert"]], settings.get("alpha", DYNAMIC)
    )

    def stats(output: Any) -> dict[str, Any]:
        trace = fusion.trace(output.sequences)
        chosen = ~trace.divergence[0, :, 0].isnan()
        return {
            name: getattr(trace, name)[0, chosen].double().round(decimals=5).tolist()
            for name in ("alpha", "divergence", "target")
        }

    def summary(stats: dict[str, Any]) -> str:
        alphas = [max(step) for step in stats["alpha"]]
        return f"alpha {sum(alphas) / len(alphas):.2f} ({min(alphas):.2f} to {max(alphas):.2f})"

    def trace(output: Any) -> list[dict[str, Any]]:
        return [{"alpha": max(step)} for step in stats(output)["alpha"]]

    return Prepared({"logits_processor": [fusion]}, stats, summary, trace)


def _steer(settings: dict[str, Any], model: PreTrainedModel, load: Load, encode: Encode) -> Prepared:
    from .integrations.transformers.steer import Steer

    texts: Sequence[str] = settings.get("negative", ())
    strengths: dict[str, Any] = {name: settings[name] for name in ("gamma", "eta") if name in settings}
    if not texts:
        strengths.setdefault("eta", 0.0)
    steer = Steer(
        load(settings["base"]),
        negatives=[[encode(text) for text in texts]] if texts else None,
        plausibility=settings.get("plausibility"),
        expert=model,
        **strengths,
    )
    return Prepared(
        {"logits_processor": [steer]},
        lambda output: {
            "gamma": steer.gamma,
            "eta": steer.eta,
            "plausibility": steer.plausibility,
            "negatives": len(texts),
            "forward_tokens": steer.forward_tokens,
        },
        lambda stats: f"gamma {stats['gamma']:g}, eta {stats['eta']:g}, {stats['negatives']} negatives",
    )
