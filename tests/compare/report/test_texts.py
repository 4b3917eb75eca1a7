from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.compare.report.per_prompt import pairs_of, rows_of
from trimtab.compare.report.texts import COLOURINGS, texts_of

from .sample import comparison, record, sweep, trace

NAMES = {"a": "A", "b": "B"}


def result_of(*records: object) -> dict[str, object]:
    return {"records": [r.as_dict() for r in records], "prompts": {}}


def test_the_fork_is_counted_as_a_browser_counts() -> None:
    smile = "\U0001f642"  # two UTF-16 units
    a, b = record("p", "a", [f"{smile}x", "same"]), record("p", "b", [f"{smile}y"])
    (pair,) = texts_of(result_of(a, b), [("a", "b")], NAMES)["pairs"]
    assert (pair["same"], pair["fork"]) == (False, 2)


@given(st.text(), st.text(), st.text())
def test_up_to_the_fork_both_are_the_same_and_no_longer(common: str, a: str, b: str) -> None:
    made = result_of(record("p", "a", [common + a]), record("p", "b", [common + b]))
    (pair,) = texts_of(made, [("a", "b")], NAMES)["pairs"]
    if common + a == common + b:
        assert pair["same"]
        return
    assert pair["fork"] is not None
    one, two = ((common + text).encode("utf-16-le") for text in (a, b))
    units = 2 * pair["fork"]
    assert one[:units] == two[:units]
    # a character of two units is never cut
    one.decode("utf-16-le")[: len(one[:units].decode("utf-16-le"))]
    assert one[:units].decode("utf-16-le") == two[:units].decode("utf-16-le")
    rests = one[units:].decode("utf-16-le"), two[units:].decode("utf-16-le")
    assert rests[0][:1] != rests[1][:1]


def test_rounds_with_the_same_texts_are_shown_once() -> None:
    made = [record("p", side, ["x", side if number else "same"], round=number) for number in range(3) for side in "ab"]
    pairs = texts_of(result_of(*made), [("a", "b")], NAMES)["pairs"]
    assert [(pair["rounds"], pair["same"]) for pair in pairs] == [([1], True), ([2, 3], False)]


def test_a_sweep_holds_the_baseline_once() -> None:
    made = sweep()
    labels = [point["label"] for point in made["points"]]
    names = {side: side for side in ["baseline", *labels]}
    texts = texts_of(made, [("baseline", label) for label in labels], names)
    shown = [side["name"] for side in texts["sides"]]
    assert shown.count("baseline") == 3  # of four prompts one failed
    assert {pair["with"] for pair in texts["pairs"]} == set(labels)
    json.dumps(texts, allow_nan=False)


def test_only_what_is_known_is_offered_as_a_colour() -> None:
    texts = texts_of(comparison(), [("a", "b")], NAMES)
    assert [c["key"] for c in texts["colourings"]] == ["entropy", "model", "accepted"]
    plain = texts_of(result_of(record("p", "a", ["x"]), record("p", "b", ["y"])), [("a", "b")], NAMES)
    assert plain["colourings"] == []


@pytest.mark.parametrize("colouring", COLOURINGS)
def test_scales_have_a_class_for_every_value(colouring: object) -> None:
    assert len(colouring.classes) == (len(colouring.edges) + 1 if colouring.edges else len(colouring.names))


def test_a_trace_is_columns() -> None:
    tokens = trace(["one", " two"], large=True)
    texts = texts_of(
        result_of(record("p", "a", ["one", " two"], trace=tokens), record("p", "b", ["x"])), [("a", "b")], NAMES
    )
    side = texts["sides"][0]
    assert side["tokens"] == ["one", " two"]
    assert side["entropy"] == [0.0, 0.3]
    assert side["model"] == ["small", "large"]
    assert "alpha" not in side


def test_a_failure_of_either_side_leaves_the_round_out() -> None:
    good, bad = record("p", "a", ["x"]), record("p", "b", [], error="no")
    later = [record("p", side, ["x"] * 4, round=1, seconds=2.0) for side in "ab"]
    records = [r.as_dict() for r in (good, bad, *later)]
    assert list(pairs_of(records)["p"]) == [1]
    (row,) = rows_of(records)
    assert (row.rounds, row.same, row.a.tokens, row.ratio) == (1, 1, 4, 1.0)
    (row,) = rows_of(records[:2])
    assert (row.a, row.ratio) == (None, None)
