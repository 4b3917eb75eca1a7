"""Entropy-adaptive decoding: the low-bit copy of a model writes, full precision where it is unsure.

python examples/entropy_adaptive.py
"""

import trimtab

large, tokenizer = trimtab.load("smollm2-135m")  # or your own large model, with small= a model of its tokenizer
inputs = tokenizer("The water cycle has four steps. First, the sun", return_tensors="pt")

# bits; `trimtab calibrate ead` finds the threshold for a share of the large model
method = trimtab.EntropyAdaptive("low-bit", threshold=2.5)
output = large.generate(
    **inputs, custom_generate=method, do_sample=False, max_new_tokens=48, return_dict_in_generate=True
)

print(tokenizer.decode(output.sequences[0], skip_special_tokens=True), "\n")
prompt = inputs["input_ids"].shape[1]
for token, (bits, model) in zip(output.sequences[0, prompt:], output.stats.rows[0].trace, strict=True):
    print(f"{model:5}  {bits:5.2f} bits  {tokenizer.decode(token)!r}")
print(f"\n{output.stats.large_share:.0%} of the tokens in full precision, {output.stats.switches} switches")
