"""Passes over any rows leave each row's state as if it had been alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.integrations.transformers.test_runner import TOLERANCE, reference
from trimtab.integrations.transformers.runner import Runner, forward_of
from trimtab.integrations.transformers.seated_state import SeatedState

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 4
PASSES = st.lists(
    st.tuples(st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True), st.booleans(), st.integers(1, 4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passes=PASSES)
def test_any_history_of_seatings(tiny_llama: PreTrainedModel, passes: list[tuple[list[int], bool, int]]) -> None:
    """Rows that were never seated too, and growth on the way."""
    state = SeatedState(ROWS, capacity=2)
    run = Runner(forward_of(tiny_llama), state, tiny_llama.device)
    generator = torch.Generator().manual_seed(0)
    texts: list[list[int]] = [[] for _ in range(ROWS)]
    for rows, back, width in passes:
        seats = state.seat(rows, back=back)
        assert sorted(seats) == sorted(rows)
        assert state.seated_rows == seats
        # ragged: the first row gets one token more than the others
        new = [torch.randint(1, 97, (width + (row == seats[0]),), generator=generator).tolist() for row in seats]
        logits = run.prefill(new)
        for slot, row in enumerate(seats):
            texts[row] += new[slot]
            torch.testing.assert_close(logits[slot], reference(tiny_llama, texts[row])[-1], atol=TOLERANCE, rtol=0.01)
        assert [state.length(row) for row in range(ROWS)] == [len(text) for text in texts]


def test_rows_at_the_two_ends_stay_where_they_are(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that take turns on one state move nothing until a row changes sides."""
    state = SeatedState(6)
    moves: list[tuple[int, int]] = []
    swap = SeatedState._swap
    monkeypatch.setattr(SeatedState, "_swap", lambda self, a, b: (moves.append((a, b)), swap(self, a, b))[1])
    large, small = [1, 4], [0, 2, 5]  # row 3 has ended
    for _ in range(3):
        state.seat(large)
        state.seat(small, back=True)
    first = len(moves)
    for _ in range(3):
        state.seat(large)
        state.seat(small, back=True)
    assert len(moves) == first
    state.seat([1, 4, 5])
    state.seat([0, 2], back=True)
    assert len(moves) <= first + 2


def test_select_is_not_for_it() -> None:
    with pytest.raises(NotImplementedError, match="seat the rows"):
        SeatedState(2).select([0])
