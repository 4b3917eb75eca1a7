"""Whether models read the same token ids, as far as their sizes and files say; the network is never asked."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError

MAX_PADDED_IDS = 512
"""Logits beyond those of the smallest model that are taken for padding of one vocabulary."""


def common_width(models: Sequence[tuple[str, int]]) -> int:
    """Logits that all models have; the names are for the message.

    Raises:
        InputError: the widths differ by more than padding of one vocabulary.
    """
    (low_name, low), (high_name, high) = min(models, key=lambda m: m[1]), max(models, key=lambda m: m[1])
    if high - low > MAX_PADDED_IDS:
        raise InputError(
            f"{low_name} has {low} logits and {high_name} has {high}: use models of one tokenizer "
            f"(up to {MAX_PADDED_IDS} more are taken for padding)"
        )
    return low


def check_same_ids(name: str, directory: str | Path, other_name: str, other_directory: str | Path) -> None:
    """Refuse two models whose tokenizers give a common token different ids.

    Tokens that only one of them has (a fine-tuned model's own markers) do not count, and nothing is known of a
    directory without a `tokenizer.json`.

    Args:
        name: of the model in `directory`, for the message.
        directory: where its files are.
        other_name: of the one it is compared with.
        other_directory: where those are.

    Raises:
        InputError: names a token and its two ids.
    """
    file, other_file = _tokenizer_file(directory), _tokenizer_file(other_directory)
    if file is None or other_file is None or _digest(*file) == _digest(*other_file):
        return
    other_ids = _vocabulary(other_file[0])
    for token, index in _vocabulary(file[0]).items():
        if other_ids.get(token, index) != index:
            raise InputError(
                f"{name} has token {token!r} as id {index} and {other_name} as id {other_ids[token]}: "
                "use models of one tokenizer"
            )


def _tokenizer_file(directory: str | Path) -> tuple[str, int] | None:
    """Path and time of change."""
    path = Path(directory, "tokenizer.json")
    return (str(path), path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(16)
def _digest(path: str, changed: int) -> bytes:
    pairs = sorted(_vocabulary(path).items())
    return hashlib.sha256(json.dumps(pairs).encode()).digest()


def _vocabulary(path: str) -> dict[str, int]:
    """Empty if the file is not what Hugging Face tokenizers write: nothing is known then."""
    try:
        known = json.loads(Path(path).read_text(encoding="utf-8"))
        tokens = known["model"]["vocab"]
        # Unigram models keep pairs of token and score in the order of the ids
        ids = dict(tokens) if isinstance(tokens, dict) else {token: index for index, (token, _) in enumerate(tokens)}
        return ids | {added["content"]: added["id"] for added in known.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
