"""Values written in child processes, scraped in the parent: as an engine and its server do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.vllm.engine import ROOT, environment

pytest.importorskip("prometheus_client")

CHILD = """
from trimtab.integrations.vllm.metrics import Counter, Histogram
HITS = Counter("trimtab:hits", "How often.", ("who",))
SIZES = Histogram("trimtab:size", "How large.", (0.5, 2), ("who",))

def work(who):
    for sizes in ((0.1,), (0.5, 1.0, 9.0)):
        HITS.inc(len(sizes), who=who)
        SIZES.observe(*sizes, who=who)
    HITS.inc(2.5, who="all")
"""
PARENT = """
import multiprocessing, os, sys
from trimtab.integrations.vllm.metrics import expose
import child

def main():
    expose()
    expose()
    from prometheus_client import generate_latest
    from vllm_registry import registry
    print("trimtab" in generate_latest(registry()).decode())
    directory = os.environ.get("TRIMTAB_METRICS_DIR") or ""
    print(os.path.exists(directory))
    for who in ("a", "b"):
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child.work, args=(who,))
        process.start()
        process.join()
        assert process.exitcode == 0
    print(directory)
    print(generate_latest(registry()).decode())

if __name__ == "__main__":
    main()
"""
# what vllm.v1.metrics.prometheus.get_prometheus_registry does
REGISTRY = """
import os
import prometheus_client
from prometheus_client import multiprocess

def registry():
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return prometheus_client.REGISTRY
    own = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(own)
    return own
"""
PAGE = [
    'trimtab:hits_total{who="a"} 4.0',
    'trimtab:hits_total{who="b"} 4.0',
    'trimtab:hits_total{who="all"} 5.0',
    'trimtab:size_bucket{le="0.5",who="a"} 2.0',
    'trimtab:size_bucket{le="2.0",who="a"} 3.0',
    'trimtab:size_bucket{le="+Inf",who="a"} 4.0',
    'trimtab:size_count{who="b"} 4.0',
    'trimtab:size_sum{who="b"} 10.6',
    "# TYPE trimtab:hits_total counter",
    "# TYPE trimtab:size histogram",
    "# HELP trimtab:size How large.",
]


@pytest.mark.parametrize(("method", "vllms_own"), [("spawn", False), ("fork", False), ("spawn", True)])
def test_children_write_and_the_parent_answers(tmp_path: Path, method: str, vllms_own: bool) -> None:
    for name, text in (("child", CHILD), ("parent", PARENT), ("vllm_registry", REGISTRY)):
        (tmp_path / f"{name}.py").write_text(text)
    env = environment(TMPDIR=str(tmp_path))
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    for name in ("PROMETHEUS_MULTIPROC_DIR", "TRIMTAB_METRICS_DIR"):  # an engine in this process has set the latter
        env.pop(name, None)
    if vllms_own:
        (tmp_path / "own").mkdir()
        env["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "own")
    command = [sys.executable, str(tmp_path / "parent.py"), method]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    shown, exists, directory, *page = done.stdout.splitlines()
    assert shown == "False"
    assert exists == "False"
    assert [line for line in PAGE if line not in page] == []
    assert bool(directory) is not vllms_own
    # nothing is left behind
    assert not directory or not Path(directory).exists()


def test_labels_are_checked() -> None:
    from trimtab.integrations.vllm.metrics import Counter

    with pytest.raises(TypeError, match=r"labels are \['what'\], not \['who'\]"):
        Counter("trimtab:hits", "How often.", ("who",)).inc(what="a")


def test_a_process_without_an_engine_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.integrations.vllm.metrics import Counter

    monkeypatch.delenv("TRIMTAB_METRICS_DIR", raising=False)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    Counter("trimtab:hits", "How often.").inc()
