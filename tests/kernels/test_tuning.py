"""Tile sizes: the measured ones where there are some, the rule otherwise; files that are damaged or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.kernels import tuning
from trimtab.kernels.tuning import Config, default, key, lookup, record, row_class, user_file

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_LOADED", None)
    tuning._lookup.cache_clear()


def test_rows_are_rounded_up_to_a_class() -> None:
    assert [row_class(rows) for rows in (1, 2, 3, 8, 9, 64, 65, 500)] == [1, 2, 4, 8, 16, 64, 64, 64]


def test_a_recorded_entry_is_used_and_no_other() -> None:
    """For its own rows class, shape, dtype and group; the rest keep the rule."""
    config = Config(16, 32, 256, 2, 2, 3)
    name = key("linear_w8a16", 5, 4096, 1024, torch.bfloat16, "cpu")
    assert record({name: (config, 1e-5)}) == user_file()
    assert lookup("linear_w8a16", 7, 4096, 1024, torch.bfloat16, CPU) == config
    rule = default("linear_w8a16", 7, 4096, 1024, torch.bfloat16, 132)
    assert rule != config
    assert lookup("linear_w8a16", 9, 4096, 1024, torch.bfloat16, CPU) == rule
    assert lookup("linear_w8a16", 7, 4096, 2048, torch.bfloat16, CPU) != config
    assert lookup("linear_w8a8", 7, 4096, 1024, torch.bfloat16, CPU) != config


@pytest.mark.parametrize("content", ["", "{", "[]", '{"entries": 3}', '{"entries": {"a": {"config": {"x": 1}}}}'])
def test_a_damaged_file_has_no_entries(content: str) -> None:
    user_file().parent.mkdir(parents=True)
    user_file().write_text(content)
    expected = default("linear_w8a8", 1, 64, 64, torch.float32, 132)
    assert lookup("linear_w8a8", 1, 64, 64, torch.float32, CPU) == expected


@pytest.mark.parametrize("operation", ["linear_w8a8", "linear_w8a16", "linear_w4a16"])
@pytest.mark.parametrize("rows", [1, 16, 33, 64, 500])
@pytest.mark.parametrize(("out", "size"), [(1, 1), (576, 576), (4096, 14336), (28672, 4096)])
def test_rule(operation: tuning.Operation, rows: int, out: int, size: int) -> None:
    """Tiles that the kernels take; every part of a split has steps to do; large grids are not split."""
    config = default(operation, rows, out, size, torch.bfloat16, 132)
    assert config.block_m in (16, 32, 64)
    assert config.split_k == 1 or -(-size // config.block_k) >= 4 * config.split_k
    if -(-out // config.block_n) >= 264:
        assert config.split_k == 1
