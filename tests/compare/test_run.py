"""Runs with their journal: what is loaded for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from trimtab.compare import run as runs
from trimtab.compare.engines import Decoder, Generated
from trimtab.compare.prompts import Prompt
from trimtab.compare.records import Record
from trimtab.compare.session import Settings
from trimtab.compare.setups import Setup, parse_setup


class Echo:
    def decode(self, prompt: Prompt, seed: int, max_new_tokens: int) -> Generated:
        return Generated(text=prompt.text, tokens=3, prompt_tokens=3, seconds=0.5)

    def close(self) -> None:
        pass


def test_a_complete_run_is_read_without_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0

    @contextmanager
    def echoes(setups: Mapping[str, Setup], settings: Settings) -> Iterator[dict[str, Decoder]]:
        nonlocal opened
        opened += 1
        yield {side: Echo() for side in setups}

    monkeypatch.setattr(runs, "opened", echoes)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("one", "two", "three")))
    sides = {side: parse_setup("none", model="m", engine="transformers", sampling={}) for side in "ab"}

    def run(rounds: int, *, enough: bool = False) -> tuple[list[Record], list[Record]]:
        settings = Settings(prompts, None, None, 8, rounds, None, 0, None, None, None)
        task = settings.read()
        seen: list[Record] = []
        _, records = runs.run(
            sides,
            settings,
            task,
            settings.identity(task, sides),
            json_file=tmp_path / "ab.json",
            seen=seen.append,
            started=lambda count: nullcontext(),
            enough=lambda records: enough,
        )
        return records, seen

    first, seen = run(1)
    assert (len(first), opened) == (6, 1)
    assert seen == first
    assert run(1) == (first, first)
    assert run(2, enough=True) == (first, first)
    assert opened == 1
    longer, _ = run(2)
    assert longer[:6] == first
    assert (len(longer), opened) == (12, 2)
    assert run(1) == (first, first)  # of a journal that has more
    assert opened == 2
