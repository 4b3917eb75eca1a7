"""The methods behind `trimtab generate --method`: which options each takes, and what it hands to `model.generate`."""

from __future__ import annotations

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

REQUIRED = {"ead": ("small", "threshold"), "fusion": ("small_base", "expert"), "steer": ("base",)}


@dataclass
class Prepared:
    """A method over loaded models.

    Attributes:
        options: for `model.generate`.
        stats: from what `generate` returned to plain data, or None if the method counts nothing.
        summary: one line about these, perhaps empty.
    """

    options: dict[str, Any]
    stats: Callable[[Any], dict[str, Any] | None] = lambda output: None
    summary: Callable[[dict[str, Any]], str] = lambda stats: ""


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
        method: `ead`, `fusion` or `steer`.
        settings: as `check_values` let them pass.
        model: whose `generate` will be called.
        load: a model by its name, where `model` is.
        encode: token ids of a negative prompt.

    Raises:
        InputError: models that do not go together.
    """
    return {"ead": _ead, "fusion": _fusion, "steer": _steer}[method](settings, model, load, encode)


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

    return Prepared({"logits_processor": [fusion]}, stats, summary)


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
