"""The native step computes what torch's operators do, for every way to quantise and number of tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import SIZES, threads
from trimtab import LowBitConfig, LowBitModel, Runner
from trimtab.integrations.transformers.decoder import LeanDecoder
from trimtab.integrations.transformers.padding import pad_right
from trimtab.integrations.transformers.state import SequenceState
from trimtab.kernels.native.build import library

# Input sizes that are no multiple of 64, output sizes that are no multiple of 32 or 16.
ODD = {**SIZES, "hidden_size": 80, "intermediate_size": 176, "vocab_size": 101}


@pytest.mark.skipif(library() is None, reason="no native kernels on this machine")
@pytest.mark.parametrize(
    ("activation_bits", "outliers", "head"), list(itertools.product((8, 16), (0, 5), (False, True)))
)
@pytest.mark.parametrize("counts", [[1], [2, 1], [3, 3, 3], [4, 7], [13, 29, 1], [120, 100]], ids=str)
def test_native_int8_is_torch_int8(activation_bits: int, outliers: int, head: bool, counts: list[int]) -> None:
    """Integer products are exact in both, so only the order of float operations differs, which now and then rounds an
    activation to the next level: with 8 bits that is seen in the logits of its token, and of those after it."""
    torch.manual_seed(len(counts))
    model = LlamaForCausalLM(LlamaConfig(**ODD, attention_bias=True)).eval()
    low = LowBitModel.quantize(model, LowBitConfig(8, activation_bits, outliers, head))  # type: ignore[arg-type]
    forward = low.forward
    assert isinstance(forward, LeanDecoder)
    prompts = [torch.randint(0, 101, (5 + row,)).tolist() for row in range(len(counts))]
    new = pad_right([torch.randint(0, 101, (count,)).tolist() for count in counts])
    found = []
    native = forward._native
    assert native is not None
    for kernels, cores in ((None, 1), (native, 1), (native, 2), (native, 3)):
        forward._native = kernels
        run = Runner(forward, SequenceState(len(counts)), model.device)
        with threads(cores):
            run.prefill(prompts)
            found.append(run.extend(new, counts))
    for ours, (row, count) in itertools.product(found[1:], enumerate(counts)):
        error = (ours[row, :count] - found[0][row, :count]).abs()
        assert error.max() < (2e-2 if activation_bits == 8 else 3e-4)
        assert error.mean() < 2e-4
