"""Alphas of many steps, counted in a thread."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("prometheus_client")

from trimtab.integrations.vllm.alpha_metrics import INTERVAL, AlphaMetrics


def test_what_requests_chose_is_counted_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry, multiprocess

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("TRIMTAB_METRICS_DIR", str(tmp_path))
    metrics = AlphaMetrics("m", ["a", "b"])
    alpha = torch.tensor([[0.25, 0.0], [2.0, 0.0], [0.0, 1.0]])
    metrics.add(alpha, torch.tensor([True, False, True]))
    alpha.fill_(9)  # the step's tensors are its own again
    metrics.add(torch.tensor([[0.5, 0.0]]), torch.tensor([True]))
    metrics.add(torch.tensor([[1.0, 1.0]]), torch.tensor([False]))
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(tmp_path))
    late = time.monotonic() + 20 * INTERVAL
    while registry.get_sample_value("trimtab:fusion_alpha_count", {"model_name": "m", "expert": "b"}) != 3:
        assert time.monotonic() < late
        time.sleep(INTERVAL / 5)

    def value(name: str, expert: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"trimtab:fusion_alpha_{name}", {"model_name": "m", "expert": expert} | labels)

    assert [value("sum", expert) for expert in "ab"] == [0.75, 1.0]
    assert [value("bucket", "a", le=le) for le in ("0.0", "0.25", "0.5", "2.0", "+Inf")] == [1, 2, 3, 3, 3]
    assert value("bucket", "b", le="0.0") == 2
