"""Streamers under `custom_generate`, which transformers 5.16-5.19 neither forwards nor ends.

`generate(streamer=s, custom_generate=f)` calls `s.put(prompt)` and then forgets `s`: a `TextIteratorStreamer` consumer
would wait for ever. trimtab therefore looks `s` up in the frame of `generate` that called it.
"""

from __future__ import annotations

import torch
from transformers.generation.streamers import BaseStreamer

from .generate_frames import generate_locals


def streamer_of_generate() -> BaseStreamer | None:
    """The `streamer=` of the `generate` call that is running this code, None without one."""
    found: BaseStreamer | None = next(generate_locals(), {}).get("streamer")
    return found


class LockstepStream:
    """Feeds a streamer as plain `generate` does: one `[batch]` tensor a step, padding for rows that have ended.

    Rows of a speculative batch advance unevenly; a step is put out once every unfinished row has reached it.
    """

    def __init__(self, streamer: BaseStreamer, pad_token_id: int) -> None:
        self._streamer, self._pad, self._sent = streamer, pad_token_id, 0

    def update(self, rows: list[list[int]], finished: list[bool]) -> None:
        """`rows`: new tokens of each row so far."""
        open_rows = [len(row) for row, done in zip(rows, finished, strict=True) if not done]
        ready = min(open_rows) if open_rows else max(map(len, rows))
        for step in range(self._sent, ready):
            self._streamer.put(torch.tensor([row[step] if step < len(row) else self._pad for row in rows]))
        self._sent = max(self._sent, ready)
