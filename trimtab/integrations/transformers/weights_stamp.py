"""Whether a model's weights are still those that something was made from."""

from __future__ import annotations

from transformers import PreTrainedModel


def weights_stamp(model: PreTrainedModel) -> tuple[tuple[int, int], ...]:
    """Equal as long as no weight was replaced or written to."""
    # in-place updates raise a tensor's version, new tensors have another address
    return tuple((p.data_ptr(), p._version) for p in model.parameters())
