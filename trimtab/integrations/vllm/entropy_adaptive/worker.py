"""The worker of an engine that decodes entropy-adaptively.

    vllm serve LARGE --worker-cls trimtab.integrations.vllm.entropy_adaptive.worker.Worker \\
        --logits-processors trimtab.integrations.vllm.entropy_adaptive.requests:EntropyAdaptiveRequests \\
        --speculative-config '{"method": "draft_model", "model": "SMALL", "num_speculative_tokens": 8,
                               "draft_sample_method": "probabilistic"}' \\
        --additional-config '{"trimtab": {"entropy_adaptive": {"threshold": 0.3}}}'

Tested with vLLM 0.31 and 0.32; touched here: `Worker.load_model`, `.model_runner`, `.use_v2_model_runner`.
"""

from __future__ import annotations

import copy
from typing import Any

from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname

from ..cpu_speculation import mend
from ..metrics import Counter
from ..model_size import parameter_count
from ..settings import settings
from ..versions import require
from .options import REQUESTS, SECTION, SETTINGS, check_requests_are_checked, check_speculative_config, gate_settings
from .slots import Counts, GateSlots

TOKENS = Counter("trimtab:entropy_adaptive_tokens", "Tokens of ended requests.", ("model_name", "writer"))
SWITCHES = Counter("trimtab:entropy_adaptive_switches", "Changes of turn in ended requests.", ("model_name",))
PASSES = Counter("trimtab:entropy_adaptive_passes", "Passes of the large model for ended requests.", ("model_name",))

_PLAIN = "vllm.v1.worker.cpu_worker.CPUWorker" if current_platform.is_cpu() else "vllm.v1.worker.gpu_worker.Worker"
_Plain: Any = resolve_obj_by_qualname(_PLAIN)


class Worker(_Plain):
    """vLLM's own worker, whose rejection sampling lets the small model speak while it is sure.

    Raises:
        InputError: the release of vLLM was not tested, or the engine's configuration lacks what the method needs.
    """

    def __init__(self, vllm_config: Any, *args: Any, **keywords: Any) -> None:
        require("entropy-adaptive decoding", "ead", "V2" if vllm_config.use_v2_model_runner else "V1")
        check_speculative_config(vllm_config.speculative_config)
        processors = vllm_config.model_config.logits_processors
        check_requests_are_checked(processors)
        self._gate_settings = gate_settings(settings(vllm_config, SECTION, SETTINGS))
        if not vllm_config.use_v2_model_runner:
            others = [name for name in processors if name != REQUESTS]
            # of this worker: the front end goes on checking
            vllm_config = copy.copy(vllm_config)
            vllm_config.model_config = copy.copy(vllm_config.model_config)
            vllm_config.model_config.logits_processors = others or None
        super().__init__(vllm_config, *args, **keywords)

    def load_model(self, **keywords: Any) -> None:
        """Load both models, then take the runner's sampling in hand."""
        super().load_model(**keywords)
        runner = self.model_runner
        self._gates = gates = GateSlots(
            self._gate_settings, self.vllm_config.scheduler_config.max_num_seqs, runner.device
        )
        if self.use_v2_model_runner:
            from .v2 import RunnerV2

            RunnerV2(runner, gates, self._ended)
        else:
            from .v1 import RunnerV1

            if current_platform.is_cpu():
                mend()
            RunnerV1(runner, gates, self._ended)

    def _ended(self, counts: Counts) -> None:
        if self.rank:  # every tensor-parallel rank samples alike: one of them speaks
            return
        model = str(self.model_config.served_model_name)
        TOKENS.inc(counts.small, model_name=model, writer="small")
        TOKENS.inc(counts.large, model_name=model, writer="large")
        SWITCHES.inc(counts.switches, model_name=model)
        PASSES.inc(counts.passes, model_name=model)

    def entropy_adaptive_counts(self) -> dict[str, float]:
        """For `collective_rpc`: tokens by model, switches, passes, large-share and cost of all requests so far."""
        large, small = self.vllm_config.model_config, self.vllm_config.speculative_config.draft_model_config
        total, ratio = self._gates.total(), parameter_count(small) / parameter_count(large)
        return {**total.as_dict(), "large_share": total.large_share, "cost": total.cost(ratio)}
