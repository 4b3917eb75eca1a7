from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import InputError
from trimtab.integrations.vllm.composed_directory import Composition
from trimtab.integrations.vllm.strengths import (
    SEARCH,
    UNCOUNTED,
    as_columns,
    columns,
    default_push,
    from_columns,
    idle_push,
    requested_push,
    requested_strength,
)


@pytest.mark.parametrize(
    ("method", "given_", "expected"),
    [
        ("fusion", None, None),
        ("fusion", {}, None),
        ("fusion", {"other": 1}, None),
        ("fusion", {"trimtab_alpha": 0}, 0.0),
        ("fusion", {"trimtab_alpha": 1.5}, 1.5),
        ("fusion", {"trimtab_alpha": "dynamic"}, SEARCH),
        ("steer", {"trimtab_gamma": 0.3}, 0.3),
    ],
)
def test_a_request_asks_for_a_strength(method, given_, expected):
    assert requested_strength(method, given_) == expected


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, 1e39, 10**400, "1", "high", True, [1.0], None])
@pytest.mark.parametrize("method", ["fusion", "steer"])
def test_anything_else_is_refused_by_name(method, value):
    field = {"fusion": "trimtab_alpha", "steer": "trimtab_gamma"}[method]
    with pytest.raises(InputError, match=f"^{field} is "):
        requested_strength(method, {field: value})


def test_gamma_is_never_searched():
    with pytest.raises(InputError, match="trimtab_gamma is 'dynamic': give a number of at least 0"):
        requested_strength("steer", {"trimtab_gamma": "dynamic"})


def test_the_other_methods_field_is_refused():
    with pytest.raises(InputError, match="trimtab_alpha is given, and this model is composed for steer: use trimtab_g"):
        requested_strength("steer", {"trimtab_alpha": 1.0})


def test_the_directory_has_the_default():
    of = {"architectures": ("A",), "members": ("trimtab_base", "trimtab_expert_a")}
    assert default_push(Composition("fusion", strength=None, **of)) == (SEARCH,)
    assert default_push(Composition("fusion", strength=0.0, **of)) == (0.0,)
    assert default_push(Composition("steer", strength=0.2, **of)) == (pytest.approx(0.2), 0.0, -1.0)


def test_steer_has_a_plausibility_beside_its_strength():
    default = (0.2, 0.0, -1.0)
    assert requested_push("steer", None, default) == default
    assert requested_push("steer", {"trimtab_plausibility": 0.1}, default) == (0.2, 0.1, -1.0)
    assert requested_push("steer", {"trimtab_gamma": 1, "trimtab_negatives": ["a"]}, default) == (1.0, 0.0, -1.0)
    with pytest.raises(InputError, match=r"^trimtab_eta is -1"):
        requested_push("steer", {"trimtab_eta": -1}, default)


@pytest.mark.parametrize("field", ["trimtab_negatives", "trimtab_eta", "trimtab_balanced", "trimtab_plausibility"])
def test_fusion_takes_none_of_it(field):
    with pytest.raises(InputError, match=f"{field} is given, and this model is composed for fusion"):
        requested_push("fusion", {field: 0}, (SEARCH,))


NUMBERS = st.floats(0, width=32, allow_infinity=False, allow_subnormal=False) | st.just(SEARCH)


def test_rows_of_no_request_cost_the_same_and_are_not_counted():
    assert idle_push((SEARCH,)) == (UNCOUNTED,)
    assert idle_push((0.5,)) == (0.5,)
    assert idle_push((0.2, 0.0, -1.0)) == (0.2, 0.0, -1.0)


@given(
    st.sampled_from([1, 3]).flatmap(lambda size: st.lists(st.tuples(*[NUMBERS] * size), min_size=1)),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_hidden_states_carry_every_bit(values, name):
    dtype = getattr(torch, name)
    pushes = torch.tensor(values)
    hidden = torch.cat([torch.zeros(len(values), 3, dtype=dtype), as_columns(pushes, dtype)], -1)
    assert hidden.shape[1] == 3 + columns(dtype, values[0])
    order = torch.arange(len(values)).flip(0)
    assert torch.equal(from_columns(hidden[order][:, 3:]), pushes[order])
