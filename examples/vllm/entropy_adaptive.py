"""Entropy-adaptive decoding in vLLM: a small model writes where it is sure, a large one where it is not.

    python -m vllm.entrypoints.openai.api_server --model LARGE \\
        --speculative-config '{"method": "draft_model", "model": "SMALL", "num_speculative_tokens": 8,
                               "draft_sample_method": "probabilistic"}' \\
        --worker-cls trimtab.integrations.vllm.entropy_adaptive.worker.Worker \\
        --logits-processors trimtab.integrations.vllm.entropy_adaptive.requests:EntropyAdaptiveRequests \\
        --additional-config '{"trimtab": {"entropy_adaptive": {"threshold": 0.3}}}'
    python examples/vllm/entropy_adaptive.py http://127.0.0.1:8000
"""

import re
import sys
import time
import urllib.request

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id


def counted() -> dict[str, float]:
    """Tokens by who wrote them, of requests that have ended, as Prometheus reads it."""
    with urllib.request.urlopen(f"{url}/metrics") as page:
        text = page.read().decode()
    found = re.findall(r'^trimtab:entropy_adaptive_tokens_total{.*writer="(\w+)".*} (\S+)$', text, re.M)
    return {"large": 0.0, "small": 0.0} | {writer: float(tokens) for writer, tokens in found}


for threshold in (0.0, 1.0, 3.0):  # bits; 0 is the large model alone
    before = counted()
    answer = client.completions.create(
        model=model,
        prompt="The three largest cities of Italy are",
        max_tokens=32,
        temperature=0,
        extra_body={"vllm_xargs": {"trimtab_threshold": threshold}},
    )
    time.sleep(0.5)  # a request is counted once the engine has noticed its end
    written = {writer: tokens - before[writer] for writer, tokens in counted().items()}
    print(f"{threshold} bits: {answer.choices[0].text!r}\n  {written}\n")
