"""The family of bench/family as model directories that vLLM loads, written once in a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.family.members import Member, load_members

NAMES: tuple[Member, ...] = ("large", "base", "extract", "record")


@dataclass(frozen=True)
class Family:
    """float32 members in memory and on disk."""

    models: dict[Member, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    directories: dict[Member, Path]


def write_family(root: Path, names: Sequence[Member] = NAMES) -> Family:
    models, tokenizer = load_members(*names)
    directories = {name: root / name for name in names}
    for name, path in directories.items():
        models[name].save_pretrained(path)
        tokenizer.save_pretrained(path)
    return Family(models, tokenizer, directories)
