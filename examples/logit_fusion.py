"""Dynamic logit fusion: what an expert adds to a small base is added to a large model, as strongly as suits each token.

    python examples/logit_fusion.py

There is no fine-tuned family of models in the box, so the experts stand in for one: the base is the first 24 of a
model's 30 layers, the expert the first 29. With your own, pass the small base and its fine-tuned copies.
"""

import copy

import trimtab

large, tokenizer = trimtab.load("smollm2-135m")


def cut(layers):
    model = copy.deepcopy(large)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    return model


inputs = tokenizer("The three primary colours are", return_tensors="pt")
fusion = trimtab.LogitFusion(base=cut(24), experts=[cut(29)])
output = large.generate(**inputs, logits_processor=[fusion], do_sample=False, max_new_tokens=24)

print(tokenizer.decode(output[0], skip_special_tokens=True), "\n")
trace = fusion.trace(output, inputs["attention_mask"])
for place in range(inputs["input_ids"].shape[1], output.shape[1]):
    alpha, moved = trace.alpha[0, place, 0], trace.divergence[0, place, 0]
    print(f"alpha {alpha:.2f}  KL from the large model {moved:6.3f} nats  {tokenizer.decode(output[0, place])!r}")
