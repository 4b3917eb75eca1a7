"""A model as vLLM loads it, without an engine around it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch


@contextmanager
def loaded_by_vllm(directory: Path, **options: Any) -> Iterator[tuple[Any, Any]]:
    """The configuration of an engine with four seats, 16 tokens a step and texts of 128; and the model."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    arguments = EngineArgs(
        str(directory), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4,
        max_num_batched_tokens=16, enable_chunked_prefill=True, **options,
    )  # fmt: skip
    config = arguments.create_engine_config()
    config.cache_config.kv_cache_layout = "LBHNC"  # as the engine's core resolves it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with set_current_vllm_config(config), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)  # as vLLM's worker does where there is none
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        model = get_model(vllm_config=config)
    try:
        yield config, model
    finally:
        destroy_model_parallel()
        destroy_distributed_environment()
