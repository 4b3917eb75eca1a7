"""Answers in the forms of OpenAI's completions and chat completions, whole and as events."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from .errors import RouteError

DONE = b"data: [DONE]\n\n"


def event(body: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def failure(error: RouteError) -> bytes:
    """The event of an error that came after the answer was begun."""
    return event(error.body())


class Form:
    """How one answer is written.

    Args:
        chat: as a chat completion.
        model: name of what answers.
        prompt_tokens: of the request.
    """

    def __init__(self, *, chat: bool, model: str, prompt_tokens: int) -> None:
        self._chat, self._prompt_tokens = chat, prompt_tokens
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(16),
            "created": int(time.time()),
            "model": model,
        }

    def usage(self, tokens: int) -> dict[str, int]:
        """Tokens of request and answer."""
        prompt = self._prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    def opening(self) -> bytes:
        """The event that comes before any text; none but in a chat."""
        return self._event({"delta": {"role": "assistant", "content": ""}}, None) if self._chat else b""

    def part(self, text: str, token_ids: list[int] | None, finish: dict[str, Any] | None = None, **more: Any) -> bytes:
        """An event with some of the text.

        Args:
            text: what is new.
            token_ids: what is new, if the request asked for them.
            finish: `finish_reason` and `stop_reason` of the last one.
            more: entries beside `choices`.
        """
        words: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
        if token_ids is not None:
            words["token_ids"] = token_ids
        return self._event(words, finish, **more)

    def closing(self, usage: dict[str, int]) -> bytes:
        """The event with the usage, where it was asked for."""
        return event({**self._head, "object": self._object(stream=True), "choices": [], "usage": usage})

    def whole(
        self, text: str, token_ids: list[int] | None, finish: dict[str, Any], usage: dict[str, int], **more: Any
    ) -> dict[str, Any]:
        """An answer in one piece."""
        words: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        if token_ids is not None:
            words["token_ids"] = token_ids
        choice = {"index": 0, **words, "logprobs": None, **finish}
        return {**self._head, "object": self._object(stream=False), "choices": [choice], "usage": usage, **more}

    def _event(self, words: dict[str, Any], finish: dict[str, Any] | None, **more: Any) -> bytes:
        choice = {"index": 0, **words, "logprobs": None, **(finish or {"finish_reason": None})}
        return event({**self._head, "object": self._object(stream=True), "choices": [choice], **more})

    def _object(self, *, stream: bool) -> str:
        if not self._chat:
            return "text_completion"
        return "chat.completion.chunk" if stream else "chat.completion"
