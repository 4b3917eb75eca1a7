from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from trimtab import InputError
from trimtab.synthesis.mauve import mauve
from trimtab.synthesis.measures import measure


@pytest.mark.skipif(find_spec("mauve") is not None, reason="MAUVE is installed")
def test_mauve_names_its_package() -> None:
    with pytest.raises(InputError, match="pip install mauve-text"):
        mauve(torch.randn(20, 4), torch.randn(20, 4))


@pytest.mark.skipif(find_spec("mauve") is None, reason="MAUVE is not installed: pip install mauve-text")
def test_mauve_orders_distributions() -> None:
    real, near, far = (torch.randn(400, 8, generator=torch.Generator().manual_seed(k)) + (k > 1) * 2 for k in range(3))
    assert mauve(near, real) > 0.8 > 0.3 > mauve(far, real)


def test_every_measure_is_reported_once_whatever_is_missing() -> None:
    found = measure(["One two three four.", "  ", "Five."], ["Real words stand here."], no_encoder="none here")
    assert len({each.name for each in found}) == len(found) == 13
    assert {each.name: each.missing for each in found if each.missing} == {
        **dict.fromkeys(("pairwise_cosine", "cosine_to_reference", "auroc", "mauve"), "none here"),
        "perplexity": "no judge",
    }
    assert [each.generated for each in found[:2]] == [2 + 1, 1]
    with pytest.raises(InputError, match="texts has 1 texts, none with any words"):
        measure([" "])
