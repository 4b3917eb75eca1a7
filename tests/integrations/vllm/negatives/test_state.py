"""Model Runner V2's state over a few steps: which negatives are read, with which tokens, and where their places go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch

from tests.integrations.vllm.negatives.test_checks import config
from tests.integrations.vllm.negatives.test_rows import Branch
from trimtab.integrations.vllm import per_request
from trimtab.integrations.vllm.composed_directory import ARCHITECTURE, KEY, Composition

DEFAULT = (0.25, 0.0, -1.0)


class Plain:
    """What of vLLM's own state is called."""

    def __init__(self) -> None:
        self.max_num_reqs, self.max_num_tokens, self.device = 4, 32, torch.device("cpu")
        self.removed: list[str] = []

    def initialize_kv_cache(self) -> None: ...
    def add_request(self, req_index: int, new_req_data: Any) -> None: ...
    def apply_staged_writes(self) -> None: ...
    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        return {"own": 1}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {}

    def remove_request(self, req_id: str) -> None:
        self.removed.append(req_id)


class Cache:
    size = 64
    allocated = 0

    def allocate(self) -> None:
        self.allocated += 1


@pytest.fixture
def state(smollm2_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from vllm.v1.worker.gpu import model_states

    monkeypatch.setattr(model_states, "resolve_model_state_cls", lambda *_: Plain)
    whole = config(smollm2_directory)
    composition = Composition("steer", (ARCHITECTURE,), ("trimtab_base",), 0.25)
    whole.model_config.hf_config = SimpleNamespace(**{KEY: {"format": 1, **composition.__dict__}})
    branch = Branch()
    branch.cache = Cache()  # type: ignore[attr-defined]
    made = per_request.composite_state(whole, torch.nn.Module(), DEFAULT, lambda pool: branch)()
    made.branch = branch
    return made


def add(state: Any, slot: int, name: str, **extra_args: Any) -> None:
    params = SimpleNamespace(extra_args=extra_args)
    state.add_request(slot, SimpleNamespace(req_id=name, sampling_params=params))
    state.apply_staged_writes()


def step(state: Any, texts: dict[str, tuple[int, int, list[int]]], scheduled: dict[str, tuple[int, int]]) -> Any:
    """`texts`: slot, length of the prompt and all tokens; `scheduled`: tokens `[begin, end)` of this step."""
    tokens, prompts = torch.zeros(4, 64, dtype=torch.int32), np.zeros(4, np.int32)
    for slot, prompt, ids in texts.values():
        tokens[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        prompts[slot] = prompt
    counts = np.array([end - begin for begin, end in scheduled.values()], np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    slots = np.array([texts[name][0] for name in scheduled])
    batch = SimpleNamespace(
        req_ids=list(scheduled), num_reqs=len(scheduled), num_tokens_after_padding=int(starts[-1]) + 3,
        query_start_loc=torch.from_numpy(starts), query_start_loc_np=starts, idx_mapping=torch.from_numpy(slots),
        idx_mapping_np=slots, num_computed_tokens_np=np.array([begin for begin, _ in scheduled.values()], np.int32),
        num_scheduled_tokens=counts,
    )  # fmt: skip
    states = SimpleNamespace(prompt_len=SimpleNamespace(np=prompts), all_token_ids=SimpleNamespace(gpu=tokens))
    state.branch.read_last = []
    return state.prepare_inputs(batch, states)


def test_negatives_are_read_where_a_token_is_sampled(state: Any) -> None:
    state.initialize_kv_cache()
    assert state.branch.cache.allocated == 1
    add(state, 2, "a", trimtab_negatives=["The sea"])
    add(state, 0, "b", trimtab_gamma=1.5)
    add(state, 1, "c", trimtab_negatives=["The sea", "A bird"], trimtab_gamma=0, trimtab_plausibility=0.5)
    texts = {"a": (2, 5, [*range(5), 50, 51]), "b": (0, 3, [*range(3), 60]), "c": (1, 4, [*range(4), 70, 71, 72])}

    # a decodes its second token, b its first, c is in its prompt
    pushes = step(state, texts, {"a": (6, 7), "b": (3, 4), "c": (0, 3)})["pushes"]
    assert [ids for _, ids in state.branch.read_last] == [[50, 51]]
    assert pushes[:5].tolist() == [[0.25, 0, 0], [1.5, 0, -1], [0, 0.5, -1], [0, 0.5, -1], [0, 0.5, -1]]

    # c has read its prompt and, resumed, two tokens after it; another order of rows
    pushes = step(state, texts, {"c": (3, 6), "a": (7, 8), "b": (4, 5)})["pushes"]
    sizes = [len(group.sequences) for group, _ in state.branch.read_last]
    assert sizes == [2, 1]
    assert state.branch.read_last[0][1] == [70, 71]
    assert pushes[:5, 2].tolist() == [-1, -1, 0, 1, -1]

    # nothing is left of places of earlier steps, nor of a request that has gone
    state.remove_request("a")
    assert state.removed == ["a"]
    pushes = step(state, texts, {"b": (4, 5), "c": (6, 7)})["pushes"]
    assert pushes[:2, 2].tolist() == [-1, 0]
    state.remove_request("c")
    assert (step(state, texts, {"b": (4, 5)})["pushes"][:, 2] == -1).all()
    assert state.branch.read_last == []
    assert (state.prepare_dummy_inputs(2, 8)["pushes"][:, 2] == -1).all()
