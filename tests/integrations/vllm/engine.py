"""A vLLM engine in a process of its own: `run` gives it requests and takes what it wrote.

As a script, it is that process: one JSON object on stdin, one in the file that its argument names, since vLLM logs on
stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 4, "disable_log_stats": False}
"""Options of an engine for tests."""
TRACED: dict[str, Any] = {"enforce_eager": False, "env": {"VLLM_CPU_CI_ENV": "1"}}
"""Options of `run` for models that go through `torch.compile`, traced once and whole, as vLLM does on a CPU.

The variable leaves out the code generation behind it, which takes minutes and is not ours. The cut of the graph at
attention and CUDA graphs are a GPU's.
"""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


def environment(**more: str) -> dict[str, str]:
    """That of a process that imports this tree."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | ENVIRONMENT | {"PYTHONPATH": paths} | more


def run(requests: list[dict[str, Any]], *, v2: bool = False, timeout: float = 580, **options: Any) -> dict[str, Any]:
    """Start an engine, generate, stop it.

    Args:
        requests: `prompt` (a text or token ids) and options of SamplingParams, each.
        v2: on the second model runner, in Triton's interpreter.
        timeout: seconds for all of it.
        options: of `vllm.LLM`, `env` for its process, `rpc`, a method of the workers to call at the end, and `scrape`,
            whether to read what a server would have on `/metrics` for trimtab's methods.

    Returns:
        `v2` (the runner in use), `plugin` (whether trimtab's was loaded), `outputs` (by request a list of samples with
        `tokens` and `logprobs`), `metrics` (vLLM's), `scraped` (trimtab's, by name and the values of the labels
        in the order of their names, the model's left out), `seconds`, `rpc` (of the first worker).
    """
    # one process, where vLLM would start three: the server's tests have those
    env = environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", **options.pop("env", {}))
    more = {name: options.pop(name, None) for name in ("rpc", "scrape")}
    job = json.dumps({"options": SMALL | options, "requests": requests, "v2": v2, **more})
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as answer:
        command = [sys.executable, "-m", "tests.integrations.vllm.engine", answer.name]
        done = subprocess.run(command, input=job, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        result: dict[str, Any] = json.load(answer)
    return result


def main() -> None:
    job = json.load(sys.stdin)
    if job["v2"]:
        from tests.integrations.vllm import v2_runner

        v2_runner.enable()
    from vllm import LLM

    begin = time.perf_counter()
    llm = LLM(**job["options"])
    started = time.perf_counter()
    prompts = [request.pop("prompt") for request in job["requests"]]
    prompts = [{"prompt_token_ids": prompt} if isinstance(prompt, list) else prompt for prompt in prompts]
    outputs = llm.generate(prompts, [_params(**request) for request in job["requests"]], use_tqdm=False)
    done = time.perf_counter()
    result = {
        "v2": llm.llm_engine.vllm_config.use_v2_model_runner,
        "plugin": "trimtab.integrations.vllm.plugin" in sys.modules,
        "outputs": [[_sample(sample) for sample in output.outputs] for output in outputs],
        "metrics": {metric.name: value for metric in llm.get_metrics() if (value := getattr(metric, "value", None))},
        "scraped": _scraped() if job["scrape"] else None,
        "rpc": llm.collective_rpc(job["rpc"])[0] if job["rpc"] else None,
        "seconds": [started - begin, done - started],
    }
    Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")


def _scraped() -> dict[str, float]:
    from prometheus_client import REGISTRY

    time.sleep(1.5)  # alphas are written twice a second
    samples = [sample for family in REGISTRY.collect() for sample in family.samples]
    return {
        " ".join([sample.name, *(sample.labels[name] for name in sorted(sample.labels) if name != "model_name")]): (
            sample.value
        )
        for sample in samples
        if sample.name.startswith("trimtab:")
    }


def _params(logit_bias: dict[str, float] | None = None, **options: Any) -> Any:
    from vllm import SamplingParams

    # JSON's keys are texts
    return SamplingParams(logit_bias=logit_bias and {int(token): bias for token, bias in logit_bias.items()}, **options)


def _sample(sample: Any) -> dict[str, Any]:
    logprobs = sample.logprobs and [{token: value.logprob for token, value in step.items()} for step in sample.logprobs]
    return {"tokens": list(sample.token_ids), "logprobs": logprobs, "text": sample.text}


if __name__ == "__main__":
    main()
