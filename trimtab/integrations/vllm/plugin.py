"""What vLLM calls in each of its processes once trimtab is installed (entry-point group `vllm.general_plugins`).

Only names are registered here. The modules behind them are imported by the engine that asks for one, so that an engine
which does not ask behaves, and starts, as without trimtab. Nothing is registered as a logits processor: vLLM loads that
entry-point group into every engine, which changes the model runner or stops it from starting.
"""

from __future__ import annotations

from . import composite_config
from .metrics import expose
from .versions import warn_once


def register() -> None:
    """Make trimtab's models and formats known to vLLM; runs in every process, possibly several times."""
    warn_once()
    expose()
    composite_config.register()
    from .quantization import config as quantization  # defines subclasses of vLLM's

    quantization.register()
