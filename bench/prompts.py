"""A benchmark's prompts as token ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a user's message, in the tokenizer's chat template if it has one."""
    if tokenizer.chat_template:
        message = [{"role": "user", "content": text}]
        encoded = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    else:
        encoded = tokenizer(text)
    return list(encoded["input_ids"])
