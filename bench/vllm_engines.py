"""vLLM engines in processes of their own, for benchmarks in which they take turns."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from trimtab import InputError

ROOT = Path(__file__).resolve().parents[1]
OPTIONS: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 8}
"""Of `vllm.LLM`, unless an engine has others; texts are the same in every round, so there is no prefix cache."""
FUSION_MODELS = "BENCH_FUSION_MODELS"
"""Environment variable for bench/vllm_fusion_processor.py: directories of the base and the experts."""
_DRAFTS = "vllm:spec_decode_num_"


@dataclass(frozen=True)
class Batch:
    """What an engine made of a batch.

    Attributes:
        seconds: by the clock, reading the prompts included.
        tokens: new ids of each prompt.
        counts: what grew meanwhile: vLLM's `drafts` (windows), `draft_tokens` and `accepted_tokens`, and what the
            engine's `rpc` counts.
    """

    seconds: float
    tokens: list[list[int]]
    counts: dict[str, float]

    @property
    def new_tokens(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.tokens))


class Engine:
    """A process with an engine, and the line to it; several may start at once, `ready` waits for one.

    Args:
        name: for messages.
        folder: for the line's socket.
        options: of `vllm.LLM`, over `OPTIONS`.
        env: of the process, over this one's.
        rpc: a method of the workers that returns numbers by name; the whole ones only grow and are counted.

    Attributes:
        plugin: whether it has loaded trimtab's plug-in; known once it is ready.
        v2: whether it has model runner V2; likewise.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        options: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
        rpc: str | None = None,
    ) -> None:
        address = str(folder / name)
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | dict(env or {})
        self._name = name
        with Listener(address) as listener:
            command = [sys.executable, "-m", "bench.vllm_engines", address]
            self._process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sys.stderr)
            self._line: Connection[Any, Any] = listener.accept()
        self._line.send((OPTIONS | dict(options), rpc))

    def ready(self) -> None:
        """Wait until it has started.

        Raises:
            InputError: it did not.
        """
        try:
            self.plugin, self.v2 = self._line.recv()
        except EOFError as error:
            raise InputError(f"the engine {self._name} did not start: its log is above") from error

    def generate(self, prompts: Sequence[str], **params: Any) -> Batch:
        """Run a batch; `params` are of `vllm.SamplingParams`, over greedy text of a fixed length."""
        self._line.send((list(prompts), {"temperature": 0.0, "ignore_eos": True} | params))
        batch: Batch = self._line.recv()
        return batch

    def stop(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self._line.send(None)
        self._line.close()
        self._process.wait(60)


def serve(address: str) -> None:
    """The process: takes batches until there are no more."""
    with Client(address) as line:  # before anything that takes long or can fail
        options, rpc = line.recv()
        from vllm import LLM, SamplingParams

        llm = LLM(enable_prefix_caching=False, disable_log_stats=False, **options)
        line.send(("trimtab.integrations.vllm.plugin" in sys.modules, llm.llm_engine.vllm_config.use_v2_model_runner))
        while (job := line.recv()) is not None:
            prompts, params = job
            before = _counts(llm, rpc)
            begin = time.perf_counter()
            outputs = llm.generate(prompts, SamplingParams(**params), use_tqdm=False)
            seconds = time.perf_counter() - begin
            counts = {name: value - before.get(name, 0) for name, value in _counts(llm, rpc).items()}
            line.send(Batch(seconds, [list(output.outputs[0].token_ids) for output in outputs], counts))


def _counts(llm: Any, rpc: str | None) -> dict[str, float]:
    counts = {
        metric.name.removeprefix(_DRAFTS): float(metric.value)
        for metric in llm.get_metrics()
        if metric.name.startswith(_DRAFTS) and hasattr(metric, "value")
    }
    told = {} if rpc is None else llm.collective_rpc(rpc)[0]
    return counts | {name: value for name, value in told.items() if isinstance(value, int)}


if __name__ == "__main__":
    from bench.vllm_engines import serve as run  # not of `__main__`, whose Batch nobody else could read

    run(sys.argv[1])
