"""The names that `--quantization` takes, and what an engine quantises.

    vllm serve MODEL --quantization trimtab-w8a8 \\
        --speculative-config '{"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_max": 4}'

With n-gram drafts that is Quasar (Huang & Wen 2026, arXiv 2603.01399): drafts from the text, verified in low bits. The
text is the low-bit model's own. The full-precision model's is had the other way round, with the low-bit weights as the
draft model of their own checkpoint:

    vllm serve MODEL --speculative-config '{"method": "draft_model", "model": "MODEL",
                                            "quantization": "trimtab-w8a16", "num_speculative_tokens": 6}'

This module is imported wherever vLLM starts, so what computes is imported by the engine that asks for it. Tested with
vLLM 0.31 and 0.32.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from ..versions import require

Format = Literal["w8a8", "w8a16", "w4a16"]
FORMATS: tuple[Format, ...] = get_args(Format)


class TrimtabConfig(QuantizationConfig):
    """Every linear but those left out, in one format; heads and embeddings stay as they are.

    Args:
        ignore: parts of names of linears to leave out.
        group: with 4-bit weights, input channels that share a scale: 32, 64 or 128.
    """

    format: Format

    def __init__(self, ignore: list[str] | None = None, group: int = 128) -> None:
        super().__init__()
        require(f"--quantization {self.get_name()}", "quantized")
        self.ignore, self.group = list(ignore or ()), group

    @classmethod
    def get_name(cls) -> str:
        """As `--quantization` has it."""
        return f"trimtab-{cls.format}"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those that the kernels read."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of the kernels (kernels/gpu/tiles.py)."""
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: float checkpoints say nothing about it."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrimtabConfig:
        """From `quantization_config` of a checkpoint or of `--hf-overrides`."""
        return cls(config.get("ignore"), config.get("group", 128))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """How a layer is loaded and computed; None for layers that stay as they are."""
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

        if not isinstance(layer, LinearBase):
            return None
        if any(part in prefix for part in self.ignore):
            return UnquantizedLinearMethod()
        from vllm.platforms import current_platform

        from .linear import LowBitLinearMethod

        if current_platform.is_cpu():
            from ..cpu_speculation import mend

            mend()
        return LowBitLinearMethod(self.format, self.group)


def _config(format: str) -> type[TrimtabConfig]:
    return type(f"Trimtab{format.upper()}Config", (TrimtabConfig,), {"format": format, "__module__": __name__})


CONFIGS = {f"trimtab-{format}": _config(format) for format in FORMATS}
# vLLM pickles them for an engine in a process that it spawns, which finds them by their names in this module
globals().update({found.__name__: found for found in CONFIGS.values()})


def register() -> None:
    """Make the formats known to vLLM in this process; once is enough, more does no harm."""
    for name, found in CONFIGS.items():
        register_quantization_config(name)(found)
