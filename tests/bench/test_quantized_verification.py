"""The benchmark, started as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def bench(*arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(ROOT / "bench" / "quantized_verification.py"), *arguments],
        cwd=directory,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    out, png, svg = (tmp_path / f"out.{suffix}" for suffix in ("json", "png", "svg"))
    # from another directory: the checkout has to be found by the script itself
    done = bench(
        "--limit", "2", "--max-new-tokens", "8", "--threads", "1", "--json", str(out), "--plot", str(png),
        "--plot", str(svg), directory=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text())
    about = result["provenance"]
    assert about["threads"] == 1
    assert about["load_average_before"]
    assert about["arms"]["hf_prompt_lookup"]["generate"]["prompt_lookup_num_tokens"] == 5
    arms = set(about["arms"])
    assert {"plain", "hf_prompt_lookup", "full", "low_bit_plain", "quantized", "lossless"} <= arms
    assert len(result["rows"]) == 2 * len(arms)
    assert all("ids" not in row and 0 < row["new_tokens"] <= 8 for row in result["rows"])
    figures = result["summary"]["all"]["arms"]
    assert figures["lossless"]["ratio_to_plain"]["low"] <= figures["lossless"]["ratio_to_plain"]["value"]
    assert all(found["tie"] for found in result["differences"])
    assert 0.5 < result["quality"]["argmax_agreement"]["all"]["value"] <= 1
    assert abs(result["quality"]["perplexity"]["change_percent"]["value"]) < 20
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    assert "quantized" in done.stdout


@pytest.mark.slow
def test_bad_input_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "good"}\n{"prompt": 3}\n')
    done = bench("--prompts", str(path))
    assert done.returncode == 2
    assert "bad.jsonl', line 2: prompt is 3" in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr
