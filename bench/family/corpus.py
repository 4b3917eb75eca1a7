"""Text to heal a model that lost layers: GSM8K, Python's own docstrings, and what SmolLM2 writes itself."""

from __future__ import annotations

import importlib
import inspect
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.integrations.transformers.padding import pad_left

BLOCK = 256
"""Tokens in a training row."""

_TOPICS = (
    "rain, the moon, bread, a lighthouse, gravity, bees, the internet, music, rivers, a lost dog, volcanoes, sleep, "
    "chess, the heart, glass, winter, a library, honey, maps, trains, mountains, cats, Rome, electricity, tea, "
    "forests, dinosaurs, the ocean, painting, a garden, football, whales, deserts, clocks, bicycles, castles, "
    "planets, memory, paper, salt"
)
_FORMS = (
    "Write a short story about {}.",
    "Explain {} to a child in three sentences.",
    "List five facts about {}.",
    "Why is {} important?",
    "Write a short letter that mentions {}.",
    "Ask and answer two questions about {}.",
    "Give me a definition of {} and one example.",
    "Write a paragraph about the history of {}.",
)
_MODULES = (
    "argparse logging textwrap decimal statistics random datetime heapq asyncio threading calendar sqlite3 "
    "urllib.parse unittest pathlib shutil zipfile tarfile socket ssl http.client collections functools itertools "
    "string re os time tempfile subprocess csv json typing"
)
_CALCULATION = re.compile(r"<<[^>]*>>")


def corpus(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gsm8k: Path, *, problems: int, texts: int
) -> Tensor:
    """`[blocks, BLOCK]` int64 in shuffled order, the same for the same arguments and Python version.

    Args:
        model: writes `texts` answers to short requests.
        tokenizer: of the model.
        gsm8k: the training split, JSONL with `question` and `answer`.
        problems: how many of its records to use.
        texts: how many texts to have written.
    """
    rng = random.Random(0)
    lines = gsm8k.read_text(encoding="utf-8").splitlines()
    documents = [
        f"Q: {record['question']}\nA: {_CALCULATION.sub('', record['answer'])}\n\n"
        for record in map(json.loads, rng.sample(lines, problems))
    ]
    documents += _docstrings()
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    rows += _written(
        model, tokenizer, [form.format(topic) for topic in _TOPICS.split(", ") for form in _FORMS], texts, rng
    )
    rng.shuffle(rows)
    stream = [token for row in rows for token in (*row, tokenizer.convert_tokens_to_ids("<|endoftext|>"))]
    blocks = torch.tensor(stream[: len(stream) // BLOCK * BLOCK]).view(-1, BLOCK)
    return blocks[torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))]


def _docstrings() -> list[str]:
    found = []
    for name in _MODULES.split():
        module = importlib.import_module(name)
        texts = (inspect.getdoc(thing) or "" for _, thing in sorted(vars(module).items()) if callable(thing))
        found += [text for text in texts if 200 < len(text) < 1500][:10]
    return found


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: list[str], count: int, rng: random.Random
) -> Iterator[list[int]]:
    """Requests and the model's own answers to them, as token ids."""
    torch.manual_seed(0)
    rng.shuffle(requests)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": request}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for request in requests[:count]
    ]
    chats.sort(key=len)
    for first in tqdm(range(0, len(chats), 64), desc="writing", unit="batch"):
        batch = chats[first : first + 64]
        ids = pad_left(batch, tokenizer.pad_token_id)
        mask = pad_left([[1] * len(chat) for chat in batch])
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=120, do_sample=True, temperature=0.8, top_p=0.95, top_k=0
        )
        for chat, row in zip(batch, made[:, ids.shape[1] :].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            yield [*chat, *row[:end]]
