"""The entropy gate over entropies that are known within bounds."""

from __future__ import annotations

import torch

from ..decoding.entropy_gate import EntropyGate, GateSettings
from ..decoding.top_entropy import EntropyRange


class RangeGate:
    """Decides by the estimates; says whether the exact entropies could have decided otherwise.

    Args:
        settings: of the gate.
    """

    def __init__(self, settings: GateSettings) -> None:
        # rows: low, estimate, high; what a row's mean is does not depend on its turns
        self._settings, self._gate = settings, EntropyGate(3, settings)

    @property
    def large(self) -> bool:
        """Whether the large model writes the next token."""
        return bool(self._gate.large[1])

    def update(self, bits: EntropyRange) -> bool:
        """Take in the entropy of one more token.

        Returns:
            Whether the mean is on the same side of the threshold wherever the entropies lie in their ranges.
        """
        threshold = self._settings.lower if self.large else self._settings.threshold
        self._gate.update(torch.tensor(bits, dtype=torch.float64), [0, 1, 2])
        low, _, high = self._gate.mean.tolist()
        return (low > threshold) == (high > threshold)
