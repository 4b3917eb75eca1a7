"""STEER in vLLM: texts of one prompt that differ, each pushed away from those before it.

trimtab compose steer --expert EXPERT --base BASE --gamma 0.2 -o STEER
python -m vllm.entrypoints.openai.api_server --model STEER
python examples/vllm/steer.py http://127.0.0.1:8000
"""

import sys

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
prompt = "Question: "


def questions(eta):
    earlier = []
    for seed in range(4):
        # earlier texts, then the same prompt: the generated tokens follow both
        options = {"trimtab_negatives": [text + "\n\n" + prompt for text in earlier], "trimtab_eta": eta}
        options |= {"trimtab_balanced": True, "trimtab_plausibility": 0.1}  # docs/steer.md says what for
        answer = client.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=32,
            seed=seed,
            stop=["\n"],
            extra_body={"top_k": 10, "vllm_xargs": options if earlier else {}},
        )
        earlier.append(prompt + answer.choices[0].text)
        yield answer.choices[0].text


for eta in (0.0, 1.0):
    print(f"eta = {eta}:", *questions(eta), sep="\n  ")
