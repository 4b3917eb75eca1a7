"""Turns in windows of any length against models that take turns token by token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_entropy_gate import BITS
from trimtab.decoding.entropy_gate import GateSettings, GateState, advance
from trimtab.decoding.entropy_window import turns

LENGTH = 40
GATES = st.builds(
    lambda threshold, window, min_stay, start, decay: GateSettings(
        threshold, window, min_stay, start_large=start, decay=decay
    ),
    BITS,
    st.integers(1, 5),
    st.none() | st.integers(1, 6),
    st.booleans(),
    st.none() | st.just(0.5),
)


def text(tokens: list[int], model: int, seed: int) -> tuple[int, float]:
    """A model as a function of the text: its next token, of two so that models often agree, and an entropy."""
    number = hash((tuple(tokens), model, seed))
    shared = hash((tuple(tokens), seed))
    return (shared if shared % 4 else number) % 2, (number >> 8) % 32 / 8


def token_by_token(seed: int, gate: GateSettings, forced: set[int]) -> tuple[list[int], list[bool]]:
    """Two models that take turns; at `forced` places the large one writes whose turn it be."""
    tokens: list[int] = []
    who: list[bool] = []
    state = GateState.start(1, gate)
    while len(tokens) < LENGTH:
        large = bool(state.large) or len(tokens) in forced
        token, bits = text(tokens, int(large), seed)
        tokens.append(token)
        who.append(large)
        state = advance(state, torch.tensor([bits]), gate)
    return tokens, who


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), gate=GATES, data=st.data())
def test_windows_of_any_length_write_the_text_of_turns_token_by_token(seed: int, gate: GateSettings, data) -> None:
    tokens: list[int] = []
    who: list[bool] = []
    forced = set()
    state = GateState.start(1, gate)
    longest = data.draw(st.integers(1, 6))
    while len(tokens) < LENGTH:
        count = data.draw(st.integers(0, longest))  # of drafts, of at most `longest`
        drafts: list[int] = []
        small_bits, large_bits = torch.full((1, longest), torch.nan), torch.full((1, longest + 1), torch.nan)
        for place in range(count):
            draft, small_bits[0, place] = text([*tokens, *drafts], 0, seed)
            drafts.append(draft)
        own = []
        for place in range(count + 1):
            token, large_bits[0, place] = text([*tokens, *drafts[:place]], 1, seed)
            own.append(token)
        found = turns(state, small_bits, large_bits, torch.tensor([count]), gate)
        speakers = found.large[0].tolist()
        # the rejection rule for greedy decoding: drafts up to the first that is not the speaker's own token
        sampled = []
        for place in range(count + 1):
            sampled.append(own[place] if speakers[place] else drafts[place])
            if place < count and sampled[-1] != drafts[place]:
                break
        written = int(found.written(torch.tensor([len(sampled)]), torch.tensor([count])))
        if not count and not bool(state.large):
            forced.add(len(tokens))
        assert written > 0
        tokens += sampled[:written]
        who += speakers[:written]
        state = found.after(torch.tensor([written]))
    expected, speakers = token_by_token(seed, gate, forced)
    assert tokens[:LENGTH] == expected
    assert who[:LENGTH] == speakers


def test_no_token_leaves_the_gate_as_it_was() -> None:
    gate = GateSettings(1.0, window=2)
    state = advance(GateState.start(2, gate), torch.tensor([0.5, 3.0]), gate)
    found = turns(state, torch.ones(2, 3), torch.ones(2, 4), torch.tensor([3, 0]), gate)
    after = found.after(torch.tensor([0, 1]))
    assert after.mean[0] == state.mean[0]
    assert after.tokens.tolist() == [1, 2]
