from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from bench.models import first_layers
from tests.conftest import tiny
from trimtab.integrations.transformers.loading import Loaded


@pytest.fixture(scope="session")
def two_layers(smollm2: Loaded) -> PreTrainedModel:
    """The first layers of a real model."""
    return first_layers(smollm2.model, 2)


@pytest.fixture(scope="session")
def biased() -> PreTrainedModel:
    """A small random model whose attention has biases, with sizes that groups of 32 divide."""
    return tiny("llama")
