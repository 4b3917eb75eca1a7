"""Logit fusion in vLLM: a large model that is steered by small experts, each request as far as it asks for.

trimtab compose fusion --target LARGE --base SMALL --expert SMALL_A --expert SMALL_B --alpha dynamic -o FUSION
python -m vllm.entrypoints.openai.api_server --model FUSION
python examples/vllm/fusion.py http://127.0.0.1:8000
"""

import sys
import urllib.request

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
prompt = "Text: Nina, a 34-year-old baker, lives in Oslo.\nRecord:"
for alpha in (0, 1, "dynamic"):  # the large model alone; proxy tuning; searched at every token
    answer = client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=32,
        temperature=0,
        stop="\n",
        extra_body={"vllm_xargs": {"trimtab_alpha": alpha}},
    )
    print(f"alpha {alpha}: {answer.choices[0].text}")

# which alphas were chosen, as Prometheus reads it
with urllib.request.urlopen(f"{url}/metrics") as page:
    lines = page.read().decode().splitlines()
print("\n".join(line for line in lines if line.startswith(("trimtab:fusion_alpha_sum", "trimtab:fusion_alpha_count"))))
