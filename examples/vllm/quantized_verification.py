"""Quantised verification in vLLM: drafts from the text itself, checked with low-bit weights.

    python -m vllm.entrypoints.openai.api_server --model MODEL --quantization trimtab-w8a8 \\
        --speculative-config '{"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_max": 4}'
    python examples/vllm/quantized_verification.py http://127.0.0.1:8000

The lossless mode is the same script before a server that has the low-bit weights as its draft model:

    python -m vllm.entrypoints.openai.api_server --model MODEL \\
        --speculative-config '{"method": "draft_model", "model": "MODEL", "quantization": "trimtab-w8a16",
                               "num_speculative_tokens": 6}'
"""

import sys
import urllib.request

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
rows = "\n".join(f"{box}. Box {box} weighs {3 * box} kg and costs {7 * box} euros." for box in range(1, 7))
prompt = f"The list:\n{rows}\n\nThe same list again:\n1. Box 1 weighs"
answer = client.completions.create(model=model, prompt=prompt, max_tokens=64, temperature=0)
print(prompt + answer.choices[0].text)

# vLLM's own counters: each pass of the model adds one token to those that it accepted
with urllib.request.urlopen(f"{url}/metrics") as page:
    lines = [line.split() for line in page.read().decode().splitlines() if line.startswith("vllm:spec_decode_num_")]
counts = {name.partition("{")[0]: float(value) for name, value in lines}
accepted, windows = counts["vllm:spec_decode_num_accepted_tokens_total"], counts["vllm:spec_decode_num_drafts_total"]
print(f"\nacceptance length {1 + accepted / max(windows, 1):.2f} tokens a pass")
