"""LoRA fine-tuning on pairs of a prompt and what should follow it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.integrations.transformers.padding import pad_right

Pair = tuple[str, str]
_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_IGNORED = -100


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    base: str,
    rank: int,
    rate: float,
    epochs: int,
    batch_size: int = 8,
) -> float:
    """Write a PEFT adapter in float16 to `folder`; mean loss of the last tenth of the steps, in nats a target token.

    Args:
        model: is not changed.
        tokenizer: of the model.
        pairs: prompts, and targets that the loss is taken on.
        folder: gets `adapter_config.json` and `adapter_model.safetensors`.
        base: what the adapter's own file calls the model.
        rank: of the two factors.
        rate: highest learning rate.
        epochs: passes over the pairs.
        batch_size: pairs in a step.
    """
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LINEARS, lora_dropout=0.0, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base  # else the directory that it was loaded from
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    rows = [_tokens(tokenizer, *pair) for pair in pairs]
    rng = random.Random(0)
    order = [row for _ in range(epochs) for row in rng.sample(rows, len(rows))]
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches), pct_start=0.1)
    # its linears were replaced in place
    decoder, head = model.model, model.lm_head.weight.detach()
    losses = []
    for batch in tqdm(batches, desc=folder.name, unit="step"):
        ids = pad_right([[*prompt, *target] for prompt, target in batch])
        labels = pad_right([[*[_IGNORED] * (len(prompt) - 1), *target] for prompt, target in batch], _IGNORED)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = decoder(ids, use_cache=False).last_hidden_state[:, : labels.shape[1]]
            # the head only where a target is: most of a row is prompt and padding
            logits = hidden[labels != _IGNORED] @ head.T
        loss = cross_entropy(logits.float(), labels[labels != _IGNORED])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    for weight in trained:
        weight.data = weight.data.half()
    adapted.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # a template with nothing filled in
    adapted.unload()
    last = losses[-max(len(losses) // 10, 1) :]
    return sum(last) / len(last)


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str) -> tuple[list[int], list[int]]:
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, target))
    return list(first), list(second)
