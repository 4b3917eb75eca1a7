"""Model Runner V1's rows over random schedules: each negative is followed by its own request's tokens, and no other."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from tests.integrations.vllm.negatives.test_checks import config
from trimtab.integrations.vllm import per_request
from trimtab.integrations.vllm.composed_directory import ARCHITECTURE, KEY, Composition

SEATS = 4


class Branch:
    """Notes what it is asked to read."""

    def __init__(self) -> None:
        self.read_last: list[tuple[Any, list[int]]] = []

    def read(self, wanted: Any, new_tokens: Any) -> None:
        self.read_last = []
        for owner, (group, new) in enumerate(wanted):
            ids = new_tokens([owner] * new, list(range(new))).tolist() if new else []
            self.read_last.append((group, ids))


@pytest.fixture
def rows(smollm2_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    whole = config(smollm2_directory)
    composition = Composition("steer", (ARCHITECTURE,), ("trimtab_base",), 0.25)
    whole.model_config.hf_config = SimpleNamespace(**{KEY: {"format": 1, **composition.__dict__}})
    whole.scheduler_config = SimpleNamespace(max_num_seqs=SEATS)
    return per_request.Rows(whole)


@pytest.mark.parametrize("seed", range(6))
def test_random_schedules(rows: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Requests come, are read in pieces, preempted, resumed with cached tokens, swapped, moved, and end."""
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    chance = random.Random(seed)
    branch = Branch()
    requests = [_request(number, chance) for number in range(24)]
    waiting, seated = list(requests), [None] * SEATS
    seen = 0
    while waiting or any(seated):
        removed, added, moved = [], [], []
        for seat, request in enumerate(seated):
            if request and (len(request["new"]) >= request["most"] or chance.random() < 0.1):
                removed.append(seat)
                seated[seat] = None
                if len(request["new"]) < request["most"]:  # preempted; some of it stays in the prefix cache
                    request["read"] = chance.randint(0, request["read"] - 1)
                    waiting.insert(0, request)
        for seat in range(SEATS):
            if not seated[seat] and waiting and chance.random() < 0.8:
                seated[seat] = request = waiting.pop(0)
                params = SimpleNamespace(extra_args=request["asked"])
                added.append((seat, params, request["prompt"], list(request["new"])))
        removed = [seat for seat in removed if seat not in {each[0] for each in added}]
        for seat in range(SEATS):  # as vLLM condenses
            later = next((other for other in reversed(range(seat + 1, SEATS)) if seated[other]), None)
            if not seated[seat] and later is not None:
                moved.append((later, seat, MoveDirectionality.UNIDIRECTIONAL))
                seated[seat], seated[later] = seated[later], None
        count = sum(map(bool, seated))
        if count > 1 and chance.random() < 0.3:
            moved.append((0, count - 1, MoveDirectionality.SWAP))
            seated[0], seated[count - 1] = seated[count - 1], seated[0]
        rows.update(BatchUpdate(SEATS, removed, added, moved))
        if not count:
            continue
        ids, positions, starts, expected = [], [], [0], []
        for request in seated[:count]:
            text = request["prompt"] + request["new"]
            request["end"] = end = chance.randint(request["read"] + 1, len(text))
            ids += text[request["read"] : end]
            positions += range(request["read"], end)
            starts.append(len(ids))
            if request["asked"] and end >= len(request["prompt"]):
                expected.append((starts[-1] - 1, request["new"][: end - len(request["prompt"])]))
        metadata = {"layer": SimpleNamespace(query_start_loc=torch.tensor(starts))}
        monkeypatch.setattr(per_request, "get_forward_context", lambda m=metadata: SimpleNamespace(attn_metadata=m))
        branch.read_last = []
        pushes = rows.pushes(torch.tensor(ids), torch.tensor(positions), lambda pool: branch)
        assert [ids for _, ids in branch.read_last] == [ids for _, ids in expected]
        places = torch.full((len(ids),), -1.0)
        places[[place for place, _ in expected]] = torch.arange(len(expected), dtype=torch.float32)
        assert torch.equal(pushes[:, 2], places)
        seen += len(expected)
        for request, begin, stop in zip(seated, starts, starts[1:], strict=False):
            assert (pushes[begin:stop, 0] == (request["asked"] or {}).get("trimtab_gamma", 0.25)).all()
            request["read"] = request["end"]
            if request["end"] == len(request["prompt"]) + len(request["new"]):
                request["new"].append(chance.randint(1000, 9999))
    assert seen > 40


def _request(number: int, chance: random.Random) -> dict[str, Any]:
    asked = {"trimtab_negatives": ["The sea"], "trimtab_gamma": float(number)} if number % 3 else None
    prompt = [chance.randint(1, 999) for _ in range(chance.randint(1, 9))]
    return {"asked": asked, "prompt": prompt, "new": [], "most": chance.randint(1, 9), "read": 0, "end": 0}


def test_tokens_that_are_not_known_are_an_error_and_no_wrong_text(rows: Any) -> None:
    row = per_request._Row((0.2, 0.0, -1.0), None, 4, [7, -1])
    row.feed(-4, [1, 2, 3])
    row.feed(1, [8])
    assert row.new == [7, 8]
    with pytest.raises(RuntimeError, match="generated tokens before 3 are not known"):
        row.feed(3, [9])
    with pytest.raises(RuntimeError, match="generated tokens before 2 are not known"):
        per_request._Row((0.2, 0.0, -1.0), None, 4, [7, -1]).feed(2, [9])
