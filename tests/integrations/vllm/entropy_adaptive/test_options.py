from types import SimpleNamespace

import pytest

from trimtab.errors import InputError
from trimtab.integrations.vllm.entropy_adaptive import options


@pytest.mark.parametrize("value", [0, 0.3, 12, float("inf")])
def test_a_request_may_have_its_own_threshold(value):
    assert options.request_threshold({"trimtab_threshold": value}) == value


def test_a_request_without_one_has_the_engines():
    assert options.request_threshold(None) is None
    assert options.request_threshold({"other": 1}) is None


@pytest.mark.parametrize("value", [-1, "0.3", True, float("nan"), [0.3]])
def test_what_is_no_threshold_is_refused_by_name(value):
    with pytest.raises(InputError, match=r"trimtab_threshold is .*give an entropy in bits"):
        options.request_threshold({"trimtab_threshold": value})


def test_the_large_model_writes_first():
    gate = options.gate_settings({"threshold": 0.5, "window": 3})
    assert gate.start_large
    assert (gate.threshold, gate.window) == (0.5, 3)


def test_an_engine_needs_a_threshold():
    with pytest.raises(InputError, match="has no threshold"):
        options.gate_settings({"window": 3})


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (None, "method.* is None"),
        (SimpleNamespace(method="ngram", draft_sample_method="greedy"), "method.* is 'ngram'"),
        (SimpleNamespace(method="draft_model", draft_sample_method="greedy"), "draft_sample_method.* is 'greedy'"),
    ],
)
def test_speculation_that_cannot_carry_the_method_is_refused(config, complaint):
    with pytest.raises(InputError, match=complaint):
        options.check_speculative_config(config)


def test_an_engine_that_would_not_check_its_requests_is_refused():
    with pytest.raises(InputError, match="add 'trimtab"):
        options.check_requests_are_checked(None)
    options.check_requests_are_checked([options.REQUESTS])
