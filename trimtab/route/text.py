"""From tokens to text across hand-overs: characters of several tokens and stop strings that begin under one model.

A server decodes what it wrote itself: a character whose bytes come from both models, or a stop string that does, would
be lost between them. So the proxy decodes, with the stream decoder of `tokenizers`, which vLLM uses as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ..errors import InputError


def read_tokenizer(name: str) -> Any:
    """A tokenizer by directory, by its file or by hub id.

    Raises:
        InputError: there is none.
    """
    path = Path(name).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises nothing more precise
        raise InputError(
            f"--tokenizer is {name!r}, where there is no tokenizer.json: give the models' directory or hub id"
        ) from error


class Text:
    """The text of one answer, as far as it can be told.

    Args:
        tokenizer: of both models.
        prompt: ids before the text.
        skip_special_tokens: leave them out.
        stop: strings that end the text.
        include_stop: whether what ends the text, string or token, is part of it.
        min_tokens: tokens before which no stop string counts.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer, self._special = tokenizer, skip_special_tokens
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=skip_special_tokens)
        self._stop, self._include_stop, self._min_tokens = tuple(stop), include_stop, min_tokens
        self._tokens, self._text, self._shown = 0, "", 0
        # a stop string that is left out may have begun in what would be shown already
        self._back = 0 if include_stop else max((len(string) - 1 for string in stop), default=0)
        self.stopped: str | None = None

    def add(self, token: int, *, ends: bool = False) -> None:
        """Take in the next token.

        Args:
            token: its id.
            ends: whether it ended the text by being what it is.
        """
        self._tokens += 1
        if ends and not self._include_stop:
            return
        before = len(self._text)
        self._text += self._decode(token)
        if self._tokens > self._min_tokens:
            self._find_stop(before)

    def take(self, *, finished: bool = False) -> str:
        """What can be shown and was not yet; all of it once the text is finished."""
        end = len(self._text) - (0 if finished or self.stopped is not None else self._back)
        begin, self._shown = self._shown, max(end, self._shown)
        return self._text[begin : self._shown]

    def _decode(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception:  # invalid UTF-8 can leave the decoder no way on (tokenizers raises nothing more precise)
            self._stream = DecodeStream(skip_special_tokens=self._special)
            return self._stream.step(self._tokenizer, token) or ""

    def _find_stop(self, before: int) -> None:
        """Of the stop strings that end in the text from `before` on, the one that ends first."""
        found = [
            (place + len(string), order, string)
            for order, string in enumerate(self._stop)
            if (place := self._text.find(string, max(before - len(string) + 1, 0))) >= 0
        ]
        if found:
            end, _, self.stopped = min(found)
            self._text = self._text[: end if self._include_stop else end - len(self.stopped)]
