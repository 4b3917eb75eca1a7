"""The same fusion as a logits processor of vLLM, whose small models are transformers' and read every text themselves.

What one would write without composite models: the engine runs the large model, and the processor, at every step, the
others, with keys and values of its own outside the engine's block tables. For `bench/vllm_methods.py` only.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from bench.vllm_engines import FUSION_MODELS
from trimtab.decoding.contrast import widened
from trimtab.decoding.fusion import fuse
from trimtab.integrations.transformers.auxiliary_model import AuxiliaryModel


class FusionProcessor(LogitsProcessor):
    """Of model runner V1: dynamic alpha for all requests."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        paths = os.environ[FUSION_MODELS].split(os.pathsep)
        load = AutoModelForCausalLM.from_pretrained
        self._base, *self._experts = (
            AuxiliaryModel(load(path, dtype=torch.float32).to(device).eval()) for path in paths
        )
        self._texts: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._texts, batch_update, lambda params, prompt, output: (prompt, output))

    @torch.no_grad()
    def apply(self, logits: Tensor) -> Tensor:
        if not self._texts:
            return logits
        rows = sorted(self._texts)
        texts = [[*prompt, *output] for prompt, output in (self._texts[row] for row in rows)]
        base = self._base.logits(texts)
        experts = torch.stack([expert.logits(texts) for expert in self._experts])
        logits[rows] = widened(fuse(logits[rows].float(), base, experts).log_probs, logits.shape[-1])
        return logits
