import torch

from trimtab.decoding.entropy_gate import GateSettings
from trimtab.integrations.vllm.entropy_adaptive.slots import Counts, GateSlots

GATE = GateSettings(1.0, window=1, start_large=True)
CPU = torch.device("cpu")


def window(gates: GateSlots, slots: list[int], bits: float, written: list[int]) -> None:
    """Two drafts each, of certain or uncertain models."""
    index, drafts = torch.tensor(slots), torch.full((len(slots),), 2)
    turns = gates.turns(index, torch.full((len(slots), 2), bits), torch.full((len(slots), 3), bits), drafts)
    gates.end(index, turns, torch.tensor(written))


def test_requests_have_their_own_thresholds() -> None:
    gates = GateSlots(GATE, 2, CPU)
    gates.begin(0, None, 100)
    gates.begin(1, 5.0, 100)
    window(gates, [0, 1], 3.0, [3, 2])
    assert gates.counts(0) == Counts(small=0, large=3, switches=0, passes=1)
    assert gates.counts(1) == Counts(small=1, large=1, switches=1, passes=1)
    assert gates.total() == Counts(small=1, large=4, switches=1, passes=2)


def test_tokens_beyond_the_last_are_not_counted() -> None:
    gates = GateSlots(GATE, 1, CPU)
    gates.begin(0, None, 4)
    window(gates, [0], 3.0, [3])
    window(gates, [0], 3.0, [3])
    assert gates.counts(0) == Counts(large=4, passes=2)


def test_a_request_goes_on_in_another_slot() -> None:
    gates = GateSlots(GATE, 2, CPU)
    gates.begin(0, 5.0, 100)
    window(gates, [0], 3.0, [2])
    saved = gates.save(0)
    gates.begin(0, None, 100)
    gates.begin(1, 5.0, 100)
    gates.restore(1, saved)
    assert gates.counts(1) == Counts(small=1, large=1, switches=1, passes=1)
    window(gates, [1], 3.0, [1])
    assert gates.counts(1).small == 2
    assert gates.counts(0) == Counts()


def test_slots_grow_without_forgetting() -> None:
    gates = GateSlots(GATE, 1, CPU)
    gates.begin(0, None, 100)
    window(gates, [0], 3.0, [3])
    assert gates.grow() == [1]
    assert len(gates) == 2
    gates.begin(1, None, 100)
    assert gates.counts(0).large == 3


def test_share_and_cost() -> None:
    counts = Counts(small=6, large=2, switches=2, passes=4)
    assert counts.large_share == 0.25
    assert counts.cost(0.2) == 0.25 + 0.75 * 0.2
    assert Counts().large_share != Counts().large_share
