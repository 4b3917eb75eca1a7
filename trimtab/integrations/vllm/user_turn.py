"""What the user said last, out of a prompt's tokens.

A logits processor sees a prompt as token ids, chat template, system message and earlier turns included; the classifier
of abilities was trained on what users say. How a template begins and ends a user's turn is learned by rendering turns
whose words are known; a template that does not let itself be learned leaves the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

_SYSTEM, _FIRST, _REPLY, _LAST = "Qalder", "Qbirch", "Qcedar", "Qdogwood"
_PROBE = "Note: a - b [c] <d>, user\n\nQ: e?\nA: f > g\nuser: h | i"
"""Holds what might be mistaken for a template's own text."""


class UserTurn:
    """Reads prompts of one tokenizer; holds no state of a call.

    Args:
        tokenizer: one of transformers, or with the same `apply_chat_template` and `decode`.
        chat_template: the server's own, in Jinja, if it does not use the tokenizer's.

    Attributes:
        header: what stands before a user's words, "" if that is not known.
        footer: what stands after them.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = {} if chat_template is None else {"chat_template": chat_template}
        self.header, self.footer = self._learn()
        if self.header and self._cut(self._render(_FIRST, _REPLY, _PROBE)) != _PROBE:
            self.header = self.footer = ""

    def text(self, ids: Sequence[int]) -> str:
        """The last user turn in `ids`; the whole text, without special tokens, where none is found."""
        if self.header and (turn := self._cut(self._tokenizer.decode(list(ids), skip_special_tokens=False))):
            return turn
        whole: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return whole.strip()

    def _cut(self, rendered: str) -> str:
        _, found, rest = rendered.rpartition(self.header)
        return rest.partition(self.footer)[0].strip() if found else ""

    def _learn(self) -> tuple[str, str]:
        try:
            chat = self._render(_FIRST, _REPLY, _LAST)
            before = [chat.partition(_FIRST)[0], _between(chat, _REPLY, _LAST)]
            after = [_between(chat, _FIRST, _REPLY), chat.rpartition(_LAST)[2]]
        except Exception:  # templates are programs: they raise what they like
            return "", ""
        if not all(map(str.strip, before + after)):
            return "", ""
        # what a system message or an open end leaves in common is shorter; nothing, if both run into the turn
        before.append(self._attempt(lambda: _between(self._render(_FIRST, system=_SYSTEM), _SYSTEM, _FIRST)))
        after.append(self._attempt(lambda: self._render(_FIRST, open_end=True).rpartition(_FIRST)[2]))
        header = _common_suffix(before) if _common_suffix(before).strip() else _common_suffix(before[:2])
        footer = _common_prefix(after) if _common_prefix(after).strip() else _common_prefix(after[:2])
        return (header, footer.rstrip()) if header.strip() and footer.strip() else ("", "")

    @staticmethod
    def _attempt(render: Any) -> str:
        try:
            return str(render())
        except Exception:
            return ""

    def _render(self, *turns: str, system: str | None = None, open_end: bool = False) -> str:
        """A chat as it comes back from the tokens; users and assistant speak in turn."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages += [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
        ids = self._tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=not open_end, return_dict=False, **self._template
        )
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def _between(text: str, left: str, right: str) -> str:
    return text.partition(left)[2].partition(right)[0] if left in text and right in text else ""


def _common_suffix(texts: list[str]) -> str:
    return _common_prefix([text[::-1] for text in texts])[::-1]


def _common_prefix(texts: list[str]) -> str:
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)
