"""vLLM's interfaces of logits processors, one for each of its model runners. Tested with vLLM 0.31 and 0.32."""

from __future__ import annotations

from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2
except ImportError:  # before 0.31: who asks for a method there is told what it needs

    class ProcessorV2:  # type: ignore[no-redef]
        """Stands in for the interface that is not there."""


__all__ = ["ProcessorV1", "ProcessorV2"]
