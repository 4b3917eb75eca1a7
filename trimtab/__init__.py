"""Decode-time methods for large language models: small models and small corrections steer a large one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .integrations.transformers.entropy_adaptive import EntropyAdaptive
    from .integrations.transformers.loading import load
    from .integrations.transformers.logit_fusion import LogitFusion
    from .integrations.transformers.low_bit import LowBitConfig, LowBitModel
    from .integrations.transformers.quantized_checkpoint import load_quantized, save_quantized
    from .integrations.transformers.quantized_verification import QuantizedVerification
    from .integrations.transformers.runner import Runner
    from .integrations.transformers.steer import Steer
    from .integrations.transformers.temperature_selector import TemperatureSelector
    from .kernels.quantize import quantize_

__version__ = "0.1.0"

__all__ = [
    "EntropyAdaptive",
    "InputError",
    "LogitFusion",
    "LowBitConfig",
    "LowBitModel",
    "QuantizedVerification",
    "Runner",
    "Steer",
    "TemperatureSelector",
    "__version__",
    "load",
    "load_quantized",
    "quantize_",
    "save_quantized",
]

_HOMES = {
    "EntropyAdaptive": "entropy_adaptive",
    "load": "loading",
    "load_quantized": "quantized_checkpoint",
    "LogitFusion": "logit_fusion",
    "LowBitConfig": "low_bit",
    "LowBitModel": "low_bit",
    "QuantizedVerification": "quantized_verification",
    "quantize_": "kernels.quantize",
    "Runner": "runner",
    "save_quantized": "quantized_checkpoint",
    "TemperatureSelector": "temperature_selector",
    "Steer": "steer",
}


def __getattr__(name: str) -> Any:
    # Importing transformers takes seconds: only those who use it wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = _HOMES[name] if "." in _HOMES[name] else f"integrations.transformers.{_HOMES[name]}"
    return getattr(import_module(f".{home}", __name__), name)
