"""STEER: texts of one prompt that differ, each pushed away from those before it.

    python examples/steer.py

The expert is a chat model after a prompt of its own. No base stands beside it here: `gamma=0` leaves the push away from
the earlier texts. With a fine-tuned expert pass its base and `gamma=0.2`.
"""

import torch

import trimtab

expert, tokenizer = trimtab.load("smollm2-135m")
ask = [{"role": "user", "content": "Invent a name for a bakery. Answer with the name only."}]
inputs = tokenizer.apply_chat_template(ask, add_generation_prompt=True, return_tensors="pt", return_dict=True)
prompt = inputs["input_ids"].shape[1]


def names(eta):
    earlier = []
    for seed in range(4):
        negatives = [[torch.cat([text, inputs["input_ids"][0]]) for text in earlier]]
        steer = trimtab.Steer(expert, 0.0, eta if earlier else 0.0, negatives, 0.05, expert=expert, balanced=True)
        torch.manual_seed(seed)
        output = expert.generate(**inputs, logits_processor=[steer], do_sample=True, top_k=10, max_new_tokens=10)
        earlier.append(output[0])
        yield tokenizer.decode(output[0, prompt:], skip_special_tokens=True).strip()


for eta in (0.0, 1.0):
    print(f"eta = {eta}:", *names(eta), sep="\n  ")
