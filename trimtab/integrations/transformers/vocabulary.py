"""Whether two models read the same token ids, as far as their files say; the network is never asked.

A model does not carry its tokenizer, but one that was loaded from a directory names it, and `tokenizer.json` in there
has the vocabulary. Models that were made in memory are taken at their word.
"""

from __future__ import annotations

import functools
import hashlib
import json
import weakref
from pathlib import Path

from transformers import PreTrainedModel

from ...errors import InputError
from .generate_frames import generate_given


def check_same_vocabulary(name: str, model: PreTrainedModel, other_name: str, other: PreTrainedModel) -> None:
    """Refuse two models whose tokenizers give a common token different ids.

    Tokens that only one of them has (a fine-tuned model's own markers) do not count.

    Args:
        name: of `model`, for the message.
        model: loaded from anywhere.
        other_name: of `other`.
        other: the one it is compared with.

    Raises:
        InputError: names a token and its two ids.
    """
    files = _tokenizer_file(model), _tokenizer_file(other)
    if None in files or _digest(*files[0]) == _digest(*files[1]):  # type: ignore[misc]
        return
    ids, other_ids = (_vocabulary(path) for path, _ in files)  # type: ignore[misc]
    for token, index in ids.items():
        if other_ids.get(token, index) != index:
            raise InputError(
                f"{name} has token {token!r} as id {index} and {other_name} as id {other_ids[token]}: "
                "use models of one tokenizer"
            )


class GeneratingModel:
    """Compares the model that runs a processor with the processor's own, when it first sees it.

    Args:
        name: of `model`, for the message.
        model: the processor's.
    """

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        self._name, self._model = name, model
        self._seen: weakref.ref[PreTrainedModel] | None = None

    def check(self, processor: object) -> None:
        """Within a `generate` that was given this processor; nothing is known of the model elsewhere.

        Raises:
            InputError: as `check_same_vocabulary`.
        """
        known = generate_given(processor)
        generating = None if known is None else known["self"]
        if generating is None or (self._seen is not None and self._seen() is generating):
            return
        check_same_vocabulary(self._name, self._model, "the model that generates", generating)
        self._seen = weakref.ref(generating)


def _tokenizer_file(model: PreTrainedModel) -> tuple[str, int] | None:
    """Path and time of change."""
    name = getattr(model, "name_or_path", "")
    path = Path(name, "tokenizer.json")
    # an empty name is the working directory, whose files are not the model's
    return (str(path), path.stat().st_mtime_ns) if name and path.is_file() else None


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
