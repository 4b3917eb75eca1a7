from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from trimtab.errors import InputError
from trimtab.integrations.vllm import trace as module
from trimtab.integrations.vllm.trace import Stay, Trace


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_stay_in_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    trace = Trace(path)
    one, two = Stay({"id": "one"}, "bits"), Stay({"id": "two"}, "bits")
    stays = {3: one, 5: two}
    # a row of nobody's, a chunk of a prompt, and two rows of one request
    keys, positions = torch.tensor([5, 3, 9, 3]), torch.tensor([-1, 0, 0, 1])
    trace.add(stays, keys, positions, torch.tensor([9.0, 1.0, 8.0, 2.0]))
    trace.add(stays, torch.tensor([3, 5]), torch.tensor([1, 0]), torch.tensor([2.5, 4.0]))  # 1 again: a rejected draft
    trace.end([one])
    trace.add(stays, torch.tensor([3]), torch.tensor([2]), torch.tensor([3.0]))  # came back
    trace.close()
    assert lines(path) == [
        {"id": "one", "first_token": 0, "bits": [1.0, 2.5]},
        {"id": "two", "first_token": 0, "bits": [4.0]},
        {"id": "one", "first_token": 2, "bits": [3.0]},
    ]
    trace.close()
    Trace(path).close()  # appends: nothing is lost
    assert len(lines(path)) == 3


def test_values_may_change_after_they_were_given(tmp_path: Path) -> None:
    """The engine reuses its buffers."""
    trace, stay = Trace(tmp_path / "trace.jsonl"), Stay({}, "bits")
    values = torch.tensor([1.0])
    trace.add({0: stay}, torch.tensor([0]), torch.tensor([0]), values)
    values.fill_(7.0)
    trace.close()
    assert lines(tmp_path / "trace.jsonl") == [{"first_token": 0, "bits": [1.0]}]


def test_a_request_that_rests_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 0.05)
    path = tmp_path / "trace.jsonl"
    trace = Trace(path)
    trace.add({0: Stay({}, "bits")}, torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0]))
    for _ in range(200):
        if path.read_text():
            break
        time.sleep(0.05)
    assert lines(path) == [{"first_token": 0, "bits": [1.0]}]
    trace.close()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trace is .*cannot be written"):
        Trace(tmp_path / "no" / "trace.jsonl")
