"""With trimtab installed, an engine that does not ask for it is the engine that it was."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.vllm import engine

PROMPTS = ["The three largest moons of Jupiter are", "A B C D A B C D A B C", "def add(a, b):\n    return", "Once upon"]
REQUESTS = [
    {"prompt": PROMPTS[0], "temperature": 0.0, "max_tokens": 16},
    {"prompt": PROMPTS[1], "temperature": 0.0, "max_tokens": 16},
    {"prompt": PROMPTS[2], "temperature": 0.8, "seed": 3, "max_tokens": 16},
    {"prompt": PROMPTS[3], "temperature": 1.0, "seed": 4, "top_p": 0.9, "max_tokens": 16},
]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
COST = """
import sys, time
import vllm.engine.arg_utils  # where plug-ins are loaded
before, begin = set(sys.modules), time.process_time()
from trimtab.integrations.vllm.plugin import register
register()
print(time.process_time() - begin)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
register()
"""


def installed() -> list[str]:
    return [point.value for point in entry_points(group="vllm.general_plugins") if point.name == "trimtab"]


def test_nothing_is_entered_where_vllm_changes_its_behaviour() -> None:
    """Of these groups vLLM loads everything that is installed, into every engine."""
    for group in ("vllm.logits_processors", "vllm.platform_plugins", "vllm.stat_logger_plugins"):
        assert [point.value for point in entry_points(group=group) if "trimtab" in point.value] == []


@pytest.mark.slow
def test_the_entry_point_imports_nothing_that_vllm_has_not() -> None:
    pytest.importorskip("vllm")
    done = subprocess.run(
        [sys.executable, "-c", COST], env=engine.environment(), capture_output=True, text=True, timeout=300, check=True
    )
    *_, seconds, packages = done.stdout.splitlines()  # before them, what vLLM 0.30 logs there
    loaded = set(packages.split())
    assert "trimtab" in loaded
    # its registry of models and its metrics, which every engine imports
    assert loaded - {"trimtab", "vllm", "transformers", "prometheus_client", "__mp_main__"} <= sys.stdlib_module_names
    assert float(seconds) < 0.4  # of processor time; 0.04 on an idle machine


@pytest.mark.slow
@pytest.mark.parametrize("speculation", [None, NGRAM])
def test_tokens_runner_and_speculation_are_those_without(
    smollm2_directory: Path, speculation: dict[str, Any] | None
) -> None:
    pytest.importorskip("vllm")
    assert installed() == ["trimtab.integrations.vllm.plugin:register"]
    options: dict[str, Any] = {"model": str(smollm2_directory)}
    requests = REQUESTS
    if speculation is not None:
        options["speculative_config"] = speculation
        # Greedy ones alone: on a CPU, vLLM 0.32's V1 runner gives other tokens in every run of the same engine, without
        # trimtab, to a greedy request that is verified beside sampled ones.
        requests = [request | {"temperature": 0.0} for request in requests]
    with_trimtab = engine.run(requests, **options)
    without = engine.run(requests, env={"VLLM_PLUGINS": ""}, **options)
    assert with_trimtab["plugin"]
    assert not without["plugin"]
    assert with_trimtab["outputs"] == without["outputs"]
    assert with_trimtab["v2"] == without["v2"]
    drafted = "vllm:spec_decode_num_draft_tokens"
    assert with_trimtab["metrics"].get(drafted) == without["metrics"].get(drafted)
    assert (with_trimtab["metrics"].get(drafted, 0) > 0) == (speculation is not None)
    assert not [name for name in with_trimtab["metrics"] if name.startswith("trimtab")]


@pytest.mark.slow
def test_the_second_runner_starts_with_speculation(smollm2_directory: Path) -> None:
    """An installed processor of the first interface would stop it, one that is not asked for would slow it down."""
    pytest.importorskip("vllm")
    pytest.importorskip("triton")
    requests = [request | {"max_tokens": 3} for request in REQUESTS[:2]]
    found = engine.run(
        requests, v2=True, model=str(smollm2_directory), speculative_config=NGRAM, max_num_batched_tokens=32
    )
    assert found["v2"]
    assert found["plugin"]
    assert all(len(output[0]["tokens"]) == 3 for output in found["outputs"])
