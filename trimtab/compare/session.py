"""What a comparison and a sweep share: what is asked, checked before any model is loaded, and the sides made ready."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..command_support import check_model_name
from ..errors import InputError
from .engines import Decoder
from .journal import SUFFIX
from .methods import TRANSFORMERS, VLLM, model_names
from .prompts import Prompt, check_ids, read_prompts, take_evenly
from .scoring import Task, choose_task
from .setups import Setup


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of all sides.

    Attributes:
        prompts: file.
        limit: prompts to take; None for all.
        task: as `choose_task` takes it.
        max_new_tokens: of each text.
        rounds: how often each prompt is decoded by each side, at most.
        until: stop once the interval of the speed is this narrow, half its width as a share of the ratio.
        seed: of sampling, unless a side has its own.
        chat: whether to use the chat template; None if there is one.
        device: where models go; None is "cuda" if there is one, else "cpu".
        threads: of the CPU; None is torch's choice.
    """

    prompts: Path
    limit: int | None
    task: str | None
    max_new_tokens: int
    rounds: int
    until: float | None
    seed: int
    chat: bool | None
    device: str | None
    threads: int | None

    def check(self) -> None:
        """Refuse numbers that are out of range.

        Raises:
            InputError: names the option.
        """
        for name in ("max_new_tokens", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}: give 1 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}: give a whole number from 0 to 2**63 - 1")

    def read(self) -> Task:
        """The prompts of the run, as its task puts them.

        Raises:
            InputError: the file or the task cannot be used.
        """
        prompts = take_evenly(read_prompts(self.prompts), self.limit)
        check_ids(prompts)
        return choose_task(self.task, prompts)

    def as_dict(self, task: Task) -> dict[str, Any]:
        """Plain data for JSON: the task as it was chosen, and how many prompts there are."""
        own = {name: value for name, value in asdict(self).items() if name != "prompts"}
        return {**own, "prompts": str(self.prompts), "task": task.name, "count": len(task.prompts)}

    def identity(self, task: Task, setups: Mapping[str, Setup]) -> dict[str, Any]:
        """What must be the same for a run to go on: everything but how many prompts and rounds there are."""
        return {
            **{f"set-up {side}": setup.as_dict() for side, setup in setups.items()},
            "prompts": hashlib.sha256(self.prompts.expanduser().read_bytes()).hexdigest(),
            "task": task.name,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "chat": self.chat,
            "device": self.device,
            "threads": self.threads,
        }


def machine(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `provenance` found, that which makes speeds comparable: another machine cannot go on with a run."""
    return {name: provenance[name] for name in ("cpu", "cores", "gpu", "versions")}


def prompts_as_dict(prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]]:
    """Text and answer of each prompt by its id."""
    found: dict[str, dict[str, Any]] = {}
    for prompt in prompts:
        answers = prompt.answers[0] if len(prompt.answers) == 1 else list(prompt.answers)
        found[prompt.id] = {"text": prompt.text, **({"answer": answers} if prompt.answers else {})}
        if prompt.messages is not None:
            found[prompt.id]["messages"] = list(prompt.messages)
    return found


def check_output(option: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Refuse a file that could not be written after hours of work.

    Raises:
        InputError: its folder is missing, it may not be written, or its name has another ending than `suffixes`.
    """
    if path is None:
        return
    shown, path = f"{option} is {str(path)!r}", path.expanduser()
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"{shown}: give a file that ends in {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise InputError(f"{shown}, and its folder is not there: make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{shown}, which cannot be written: give another file")


def check_packages(setups: Sequence[Setup], *, plot: bool = False) -> None:
    """Refuse what needs a package that is not installed, and models' names that are misspelt.

    Raises:
        InputError: names the package and how to install it.
    """
    wanted = {"scipy": "ab", **({"matplotlib": "ab"} if plot else {})}
    if any(setup.is_server for setup in setups):
        wanted["httpx"] = "ab"
    if any(setup.engine == VLLM for setup in setups):
        wanted["vllm"] = "vllm"
    for package, extra in wanted.items():
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{package} is not installed, and this needs it: pip install 'trimtab[{extra}]'")
    for setup in setups:
        for name in (setup.model, *model_names(setup.method, setup.options)):
            if name and not setup.is_server:
                check_model_name(name, f"set-up {setup.text!r}: model")


@contextmanager
def opened(setups: Mapping[str, Setup], settings: Settings) -> Iterator[dict[str, Decoder]]:
    """All sides, ready to decode: servers are asked first, since that is quick to fail.

    Raises:
        InputError: a server cannot be reached, or a model cannot be used.
    """
    decoders: dict[str, Decoder] = {}
    try:
        for side, setup in setups.items():
            if setup.is_server:
                from .engines.server import ServerDecoder

                decoders[side] = ServerDecoder(setup, settings.chat)
        if any(setup.engine == TRANSFORMERS for setup in setups.values()):
            from .engines.transformers import ModelPool, TransformersDecoder

            pool = ModelPool(settings.device)
            for side, setup in setups.items():
                if setup.engine == TRANSFORMERS:
                    decoders[side] = TransformersDecoder(setup, pool, settings.chat)
        if inside := {side: setup for side, setup in setups.items() if setup.engine == VLLM}:
            from .engines.vllm import open_decoders

            decoders |= open_decoders(inside, settings.chat)
        yield {side: decoders[side] for side in setups}
    finally:
        for decoder in decoders.values():
            decoder.close()


def journal_path(json_file: Path | None) -> Path | None:
    """Beside the JSON file, under its name."""
    if json_file is None:
        return None
    path = json_file.expanduser()
    return path.with_name(path.name + SUFFIX)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file as a whole."""
    path = path.expanduser()
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
