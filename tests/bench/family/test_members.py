import pytest
import torch
from peft import PeftModel

from bench.family.members import WEIGHTS, load_members
from bench.family.tasks import items


@pytest.mark.slow
def test_an_expert_is_what_peft_makes_of_its_adapter() -> None:
    members, tokenizer = load_members("base", "record")
    ids = tokenizer(items("record", 1, "test")[0].prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        merged = members["record"](ids).logits
        theirs = PeftModel.from_pretrained(members["base"], str(WEIGHTS / "record")).eval()(ids).logits
    torch.testing.assert_close(merged, theirs, atol=1e-3, rtol=1e-4)
    assert members["record"].lm_head.weight is members["base"].lm_head.weight


@pytest.mark.slow
def test_the_expert_knows_its_task_and_the_large_model_does_not() -> None:
    members, tokenizer = load_members("large", "record")
    right = {}
    for name, model in members.items():
        right[name] = 0
        for item in items("record", 4, "test"):
            inputs = tokenizer(item.prompt, return_tensors="pt")
            made = model.generate(**inputs, max_new_tokens=44, do_sample=False)
            right[name] += item.right(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :]))
    assert right["record"] >= 3
    assert right["large"] == 0
