"""How vLLM learns of composite models, and what it has to set before it starts one. Tested with vLLM 0.31 and 0.32.

`MODELS_CONFIG_MAP[architecture]` is called once, in the process that makes the engine's configuration; the others get
a copy. So `vllm serve DIR` needs no options. vLLM is imported by the functions only.
"""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from . import versions
from .composed_directory import ARCHITECTURE, KEY, Composition, Method, read_composition

DRAFTERS = ("ngram", "ngram_gpu", "draft_model")
"""Speculative methods that read no hidden states of the target."""
LOADERS = ("auto", "hf", "safetensors", "fastsafetensors", "pt", "dummy")
"""Load formats whose loader takes the weights of members too."""
_PROCESSORS: dict[tuple[Method, bool], str] = {
    ("fusion", False): "AlphaV1",
    ("steer", False): "GammaV1",
    ("fusion", True): "AlphaV2",
    ("steer", True): "GammaV2",
}
"""By method and whether Model Runner V2 is used."""


def register() -> None:
    """Make vLLM know the architecture; nothing is imported until an engine asks for it."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, "trimtab.integrations.vllm.composite:TrimtabCompositeForCausalLM")
    try:
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    except ImportError:
        if versions.supported(versions.installed()):
            raise
        return  # another release, whose engines work on without us
    MODELS_CONFIG_MAP[ARCHITECTURE] = CompositeConfig


def composition_of(model_config: Any) -> Composition:
    """Of vLLM's `ModelConfig`.

    Raises:
        InputError: its `config.json` is not one of `trimtab compose`.
    """
    return read_composition(getattr(model_config.hf_config, KEY, None))


class CompositeConfig:
    """vLLM's hooks for the architecture; what it would do for the target's own is done too."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what a composite cannot do, and let requests say how strongly they are pushed.

        Raises:
            InputError: an engine option that a composite model cannot serve.
        """
        versions.require("a composite model")
        composition = composition_of(vllm_config.model_config)
        own = _own(composition)
        if own is not None:
            own.verify_and_update_config(vllm_config)
        v2 = bool(vllm_config.use_v2_model_runner)
        versions.require("a composite model", composition.method, "V2" if v2 else "V1")
        _check(vllm_config, v2)
        # members may have windows and heads of other sizes; one kind of block table serves all of them
        vllm_config.scheduler_config.disable_hybrid_kv_cache_manager = True
        processors = [f"trimtab.integrations.vllm.per_request:{_PROCESSORS[composition.method, v2]}"]
        if composition.method == "steer":
            from .negatives.checks import checks_name

            processors.append(checks_name(vllm_config))
        given = vllm_config.model_config.logits_processors or []
        vllm_config.model_config.logits_processors = [*processors, *given]

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """The target's own part.

        Raises:
            InputError: a release of vLLM that composites were not tested with.
        """
        versions.require("a composite model")
        own = _own(composition_of(model_config))
        if own is not None:
            own.verify_and_update_model_config(model_config)


def _own(composition: Composition) -> Any:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    return MODELS_CONFIG_MAP.get(composition.architectures[0])


def _check(vllm_config: Any, v2: bool) -> None:
    from vllm.platforms import current_platform

    drafting = vllm_config.speculative_config
    if drafting is not None and not v2:
        raise InputError(
            "speculative_config is given with Model Runner V1, which keeps a request's strength from a composite "
            "model: leave it out, or run where Model Runner V2 does"
        )
    if drafting is not None and drafting.method not in DRAFTERS:
        raise InputError(
            f"speculative_config has method {drafting.method!r}, which reads one model's hidden states: use one of "
            f"{', '.join(DRAFTERS)} with a composite model"
        )
    if not v2 and not current_platform.is_cpu():
        raise InputError("Model Runner V1 is chosen on a GPU: composite models need V2 there, unset what asks for V1")
    if vllm_config.load_config.load_format not in LOADERS:
        raise InputError(
            f"load_format is {vllm_config.load_config.load_format!r}: a composite model loads by {', '.join(LOADERS)}"
        )
    if vllm_config.model_config.enable_prompt_embeds:
        raise InputError("enable_prompt_embeds is set: the members of a composite model read token ids")
