import signal
import threading

import pytest
import torch
from transformers import StoppingCriteriaList

from tests.conftest import tiny
from trimtab.interrupts import Interrupts


def swallow() -> None:
    """What C code does that clears every exception."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return
    raise AssertionError("no interrupt came")


def test_an_interrupt_that_was_swallowed_comes_again_after_the_next_token() -> None:
    steps = []

    def step(ids: torch.Tensor, scores: object) -> torch.Tensor:
        steps.append(ids.shape[1])
        if len(steps) == 3:
            swallow()
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        tiny("llama").generate(
            torch.tensor([[5, 6]]), stopping_criteria=StoppingCriteriaList([step, interrupts]), max_new_tokens=20
        )
    assert len(steps) == 3


def test_an_interrupt_at_the_very_end_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        swallow()


def test_the_old_handler_comes_back_and_nothing_is_raised_without_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert not interrupts(torch.zeros(3, 4), None).any()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_is_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
