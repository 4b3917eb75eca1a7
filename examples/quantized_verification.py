"""Quantised self-speculative verification: the text of plain `generate`, in fewer and cheaper passes.

python examples/quantized_verification.py
"""

import time

import trimtab

model, tokenizer = trimtab.load("smollm2-135m")
text = (
    "Q: Which rivers flow through Paris, London and Rome?\nA: The Seine flows through Paris, the Thames through London"
)
inputs = tokenizer(text, return_tensors="pt")
method = trimtab.QuantizedVerification(bits=8, mode="lossless")
method.prepare(model)  # quantises now rather than within the first call

for name, options in {"plain": {}, "lossless": {"custom_generate": method}}.items():
    begin = time.perf_counter()
    output = model.generate(**inputs, **options, do_sample=False, max_new_tokens=48, return_dict_in_generate=True)
    seconds = time.perf_counter() - begin
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    print(f"{name}: {len(new) / seconds:.1f} tokens/s\n{tokenizer.decode(new, skip_special_tokens=True)}\n")
print(f"{output.stats.acceptance_length:.2f} tokens a low-bit pass")
