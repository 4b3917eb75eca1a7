import time
from pathlib import Path

import pytest

from trimtab.tasks.sandbox import passes


def test_a_program_that_ends_passes() -> None:
    assert passes("print('fine')\n")


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "raise SystemExit(3)",
        "def broken(:",
        "x = bytearray(2 << 30)",
        "open('large', 'wb').write(b'x' * (2 << 20))",
    ],
)
def test_failures_do_not_pass(program: str) -> None:
    assert not passes(program)


def test_an_endless_loop_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    program = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3); open({str(mark)!r}, \"w\")'])\n"
        "while True: pass\n"
    )
    start = time.monotonic()
    assert not passes(program, timeout=1.0)
    assert time.monotonic() - start < 3
    time.sleep(3)
    assert not mark.exists()


def test_the_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "yes")
    assert passes("import os; assert 'A_SECRET' not in os.environ")
