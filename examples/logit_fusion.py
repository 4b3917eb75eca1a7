"""Dynamic logit fusion: a large model does a task that only a small copy of it was taught.

    PYTHONPATH=. python examples/logit_fusion.py

The family of models is that of bench/family: the expert is the small base, fine-tuned to write records. With your own
models pass the small base and its fine-tuned copies, and call `generate` of the large one.
"""

import trimtab
from bench.family.members import load_members

members, tokenizer = load_members("large", "base", "record")
large = members["large"]
inputs = tokenizer("Text: Vera, a 34-year-old baker, lives in Oslo.\nRecord:", return_tensors="pt")
options = {"do_sample": False, "max_new_tokens": 40, "stop_strings": ["\n"], "tokenizer": tokenizer}
width = inputs["input_ids"].shape[1]

alone = large.generate(**inputs, **options)
print("large alone:", tokenizer.decode(alone[0, width:]).strip())

fusion = trimtab.LogitFusion(members["base"], [members["record"]])
fused = large.generate(**inputs, logits_processor=[fusion], **options)
print("fused:", tokenizer.decode(fused[0, width:]).strip(), "\n")

trace = fusion.trace(fused, inputs["attention_mask"])
for place in range(width, fused.shape[1]):
    alpha, moved = trace.alpha[0, place, 0], trace.divergence[0, place, 0]
    print(f"alpha {alpha:.2f}  KL from the large model {moved:6.3f} nats  {tokenizer.decode(fused[0, place])!r}")
