"""Sides in vLLM: engines are started as docs/vllm.md says, and shared where only requests differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.vllm.engine import TRACED, environment
from trimtab.compare.engines import vllm as sides
from trimtab.compare.setups import parse_setup
from trimtab.errors import InputError
from trimtab.integrations.vllm import versions


@pytest.fixture(autouse=True)
def tested_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: "0.32.0")


def options(text: str, tmp_path: Path) -> dict[str, Any]:
    setup = parse_setup(text, model="some/model", engine="vllm", sampling={})
    return sides.engine_options(setup, tmp_path / "composed")


def test_plain_engine_has_no_prefix_cache(tmp_path: Path) -> None:
    assert options("none:dtype=float32", tmp_path) == {
        "model": "some/model",
        "enable_prefix_caching": False,
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    ("text", "quantization", "drafts"),
    [
        ("quantized", "trimtab-w8a16", 5),
        ("quantized:activation_bits=8,draft_length=3", "trimtab-w8a8", 3),
        ("quantized:bits=4", "trimtab-w4a16", 5),
        ("quantized:bits=8,drafter=none", "trimtab-w8a16", None),
        ("quantized:bits=16", None, 5),
    ],
)
def test_low_bit_verification(tmp_path: Path, text: str, quantization: str | None, drafts: int | None) -> None:
    found = options(text, tmp_path)
    assert found.get("quantization") == quantization
    speculative = found.get("speculative_config")
    assert (speculative and speculative["num_speculative_tokens"]) == drafts


def test_entropy_adaptive(tmp_path: Path) -> None:
    found = options("ead:small=small/model,threshold=0.3,window=4", tmp_path)
    assert found["speculative_config"]["model"] == "small/model"
    assert found["additional_config"] == {"trimtab": {"entropy_adaptive": {"threshold": 0.3, "window": 4}}}
    with pytest.raises(InputError, match="in vLLM give a small model"):
        options("ead:small=low-bit,threshold=0.3", tmp_path)


def test_temperature(tmp_path: Path) -> None:
    found = options("temperature:size=7B,rule=likeliest", tmp_path)
    assert found["additional_config"] == {"trimtab": {"temperature": {"model": "7B", "rule": "likeliest"}}}


def test_members_have_to_be_directories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directory"):
        options("steer:base=small/model", tmp_path)


def test_an_untested_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: "0.29.0")
    with pytest.raises(InputError, match=r"found 0\.29\.0"):
        options("quantized", tmp_path)


@pytest.mark.slow
def test_two_engines_take_turns(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    prompts = tmp_path / "prompts.jsonl"
    questions = [("What is 2 + 3?", 5), ("What is 4 + 4?", 8)]
    prompts.write_text("\n".join(json.dumps({"prompt": text, "answer": right}) for text, right in questions))
    out = tmp_path / "ab.json"
    arguments = ["ab", "--engine", "vllm", "--model", "smollm2-135m", "--max-new-tokens", "8", "--json", str(out)]
    arguments += ["--a", "none:dtype=float32", "--b", "quantized:bits=8,dtype=float32", "--prompts", str(prompts)]
    done = subprocess.run(
        [sys.executable, "-m", "trimtab.cli", *arguments],
        env=environment(**TRACED["env"]),
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert found["failures"] == {"a": 0, "b": 0}
    assert all(0 < record["first_token_seconds"] < record["seconds"] for record in found["records"])
    assert {record["tokens"] for record in found["records"]} <= set(range(1, 9))
