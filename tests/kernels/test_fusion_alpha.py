"""The search for alpha on the CPU, as a torch operator, and what is refused.

tests/decoding/test_fusion.py compares what the search reaches with a grid in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from trimtab.errors import InputError
from trimtab.kernels.fusion_alpha import fusion_alpha, tilt


def case(rows: int, experts: int, vocab: int = 60, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    base = 2 * torch.randn(rows, vocab, generator=source)
    large = base + torch.randn(rows, vocab, generator=source)
    return large, base, base + torch.randn(experts, rows, vocab, generator=source)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_figures_are_those_of_float64(dtype: torch.dtype) -> None:
    """Targets, and the distance at the alpha that is returned, each expert alone."""
    large, base, experts = (x.to(dtype) for x in case(4, 3))
    large[:, 5] = -torch.inf
    found = fusion_alpha(large, base, experts)
    assert found.converged.all()
    assert ((found.alpha >= 0) & (found.alpha <= 2)).all()
    keep = np.arange(60) != 5
    p, q, e = (log_softmax(x.double().numpy()[..., keep], axis=-1) for x in (large, base, experts))
    target = np.stack(
        [rel_entr(np.exp(e), np.exp(q)).sum(-1), rel_entr(np.exp(q), np.exp(e)).sum(-1)], -1
    ).swapaxes(0, 1)  # fmt: skip
    np.testing.assert_allclose(found.target.numpy(), target, atol=2e-5)
    for expert in range(3):
        alpha = found.alpha[:, expert].double().numpy()
        fused = log_softmax(p + alpha[:, None] * (e[expert] - q), axis=-1)
        both = np.stack(
            [rel_entr(np.exp(fused), np.exp(p)).sum(-1), rel_entr(np.exp(p), np.exp(fused)).sum(-1)], -1
        )  # fmt: skip
        distance = ((both - target.mean(1)) ** 2).sum(-1)
        np.testing.assert_allclose(found.distance[:, expert].numpy(), distance, atol=1e-4)


def test_parts_at_hand_change_nothing() -> None:
    inputs = case(3, 2)
    for got, expected in zip(fusion_alpha(*inputs, parts=tilt(*inputs)), fusion_alpha(*inputs), strict=True):
        assert torch.equal(got, expected)


def test_alpha_stays_within_its_end() -> None:
    large, base, experts = case(4, 1)
    assert (fusion_alpha(large, base, base + 8 * (experts - base), alpha_max=0.5).alpha <= 0.5).all()


def test_no_rows() -> None:
    found = fusion_alpha(*case(0, 2))
    assert found.alpha.shape == found.converged.shape == (0, 2)
    assert found.target.shape == (0, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator(dtype: torch.dtype) -> None:
    """torch's own checks: schema, fake results against real ones, tracing with and without dynamic shapes."""
    inputs = tuple(x.to(dtype) for x in case(3, 2))
    torch.library.opcheck(torch.ops.trimtab.fusion_alpha.default, (*inputs, 2.0))


def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda p, q, e: fusion_alpha(2 * p, q, e), fullgraph=True, backend="aot_eager")
    large, base, experts = case(2, 2)
    for got, expected in zip(compiled(large, base, experts), fusion_alpha(2 * large, base, experts), strict=True):
        assert torch.equal(got, expected)


def test_fake_results_have_shape_and_dtype() -> None:
    found = torch.ops.trimtab.fusion_alpha(*(x.to("meta") for x in case(5, 3)), 2.0)
    assert [(tuple(x.shape), x.dtype) for x in found] == [
        ((5, 3), torch.float32),
        ((5, 3), torch.float32),
        ((5, 3), torch.bool),
        ((5, 3, 2), torch.float32),
    ]


LARGE, BASE, EXPERTS = case(2, 3)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((LARGE[0], BASE[0], EXPERTS[:, 0]), {}, r"shapes \(60,\), \(60,\)"),
        ((LARGE, BASE[:, :59], EXPERTS), {}, r"\(2, 60\), \(2, 59\) and \(3, 2, 60\); \[rows, vocab\] twice"),
        ((LARGE, BASE, EXPERTS[0]), {}, r"and \(2, 60\); \[rows, vocab\] twice"),
        ((LARGE[:, :0], BASE[:, :0], EXPERTS[..., :0]), {}, r"shapes \(2, 0\)"),
        ((LARGE, BASE.double(), EXPERTS), {}, "are torch.float32, torch.float64 and torch.float32"),
        ((LARGE, BASE.to("meta"), EXPERTS), {}, "lie on cpu, meta and cpu"),
        ((LARGE, BASE, EXPERTS), {"alpha_max": 0.0}, "alpha_max is 0.0: give a number above 0"),
        ((LARGE, BASE, EXPERTS), {"alpha_max": float("nan")}, "alpha_max is nan"),
    ],
)
def test_bad_input(inputs, options, message) -> None:  # type: ignore[no-untyped-def]
    """An error that names the argument and the rule, before any work."""
    with pytest.raises(InputError, match=message):
        fusion_alpha(*inputs, **options)
