"""Mends sampled speculative decoding on vLLM's CPU build.

In 0.32 its `expand_batch_to_tokens` leaves temperatures, top-k and top-p of the verified rows uninitialised: the C++
routine behind it is given copies of all tensors that are not int64, its result among them. A sampled request then stops
the engine, or is drawn from another distribution. A batch of greedy requests never calls it. Another build that expands
rightly is left alone.

And its top-k takes the largest k of all rows, which stops the engine where there are none: where every request of a
step is at its last token, so that nothing was drafted. Tested with vLLM 0.31 and 0.32.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from vllm.v1.sample import rejection_sampler


@functools.cache
def mend() -> None:
    """Make both work in this process."""
    values, ends = torch.tensor([0.625, 7.5]), torch.tensor([2, 3], dtype=torch.int32)
    found = rejection_sampler.expand_batch_to_tokens(values, ends, 3)
    if found.tolist() != [0.625, 0.625, 7.5]:
        rejection_sampler.expand_batch_to_tokens = _expand
    constrain = rejection_sampler.apply_top_k_top_p

    def of_any(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
        return constrain(logits, k, p) if len(logits) else logits

    rejection_sampler.apply_top_k_top_p = of_any


def _expand(x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Tensor:
    """`[batch]` to `[num_tokens]`: each value as often as its request has tokens."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1)).long()
    return torch.where(x == replace_from, replace_to, x).to(x.dtype).repeat_interleave(counts, output_size=num_tokens)
