"""A model directory that stands for several models read together: what `trimtab compose` writes and vLLM starts.

`config.json` is the target's own, with another architecture and a key `trimtab` that says what is composed; the
target's other files are links, and each member is a link to a directory. Weights are not copied; `cp -rL` makes a
directory that stands alone. Nothing here imports torch or vLLM.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ...errors import InputError
from ...vocabularies import check_same_ids, common_width

ARCHITECTURE = "TrimtabCompositeForCausalLM"
"""The name under which the composite model is registered with vLLM."""
KEY = "trimtab"
BASE = "trimtab_base"
"""The member that every method has; experts are `trimtab_expert_a` and so on."""
FORMAT = 1
_FILES = 26
_LENGTHS = ("max_position_embeddings", "n_positions")

Method = Literal["fusion", "steer"]
Active = Literal["one", "all"]


@dataclass(frozen=True)
class Composition:
    """How the models of a directory are put together.

    Attributes:
        method: `fusion`: the target plus what experts learned over a small base; `steer`: an expert away from its base.
        architectures: the target's own, as in its `config.json`.
        members: names of links in the directory, the base first. They hold no digits: vLLM reads a layer's index off
            its name.
        strength: alpha of `fusion` or gamma of `steer` for requests that ask for none; None searches alpha at every
            token.
        alpha_max: the search covers `[0, alpha_max]`.
        active: as of `LogitFusion`.
    """

    method: Method
    architectures: tuple[str, ...]
    members: tuple[str, ...]
    strength: float | None
    alpha_max: float = 2.0
    active: Active = "one"


# -- reading -----------------------------------------------------------------------------------------------------------


def read_composition(found: Any) -> Composition:
    """From the value of `config.json` at `KEY`.

    Raises:
        InputError: it is not what `write_directory` wrote.
    """
    try:
        if not isinstance(found, Mapping) or found["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        composition = Composition(
            method=found["method"],
            architectures=tuple(found["architectures"]),
            members=tuple(found["members"]),
            strength=None if found["strength"] is None else float(found["strength"]),
            alpha_max=float(found["alpha_max"]),
            active=found["active"],
        )
        _check(composition)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{KEY!r} in config.json cannot be read ({error}): write the directory with trimtab compose"
        ) from None
    return composition


def _check(composition: Composition) -> None:
    """Values that a hand may have changed."""
    if composition.method not in get_args(Method):
        raise ValueError(f"method is {composition.method!r}")
    if composition.active not in get_args(Active):
        raise ValueError(f"active is {composition.active!r}")
    if not 0 < composition.alpha_max < math.inf:
        raise ValueError(f"alpha_max is {composition.alpha_max!r}")
    if composition.strength is None and composition.method == "steer":
        raise ValueError("strength is missing")
    if composition.strength is not None and not 0 <= composition.strength < math.inf:
        raise ValueError(f"strength is {composition.strength!r}")
    least = 1 if composition.method == "steer" else 2
    if len(composition.members) < least or not composition.architectures:
        raise ValueError("members or architectures are missing")


# -- writing -----------------------------------------------------------------------------------------------------------


def compose_fusion(
    output: Path,
    target: Path,
    base: Path,
    experts: Sequence[Path],
    *,
    alpha: float | None,
    alpha_max: float = 2.0,
    active: Active = "one",
) -> None:
    """Write a directory for dynamic logit fusion or, with a number for `alpha`, proxy tuning.

    Args:
        output: to be made; may exist if it is empty.
        target: directory of the large model.
        base: of the small model that the experts were fine-tuned from.
        experts: of fine-tuned copies of `base`, one or more.
        alpha: at least 0, or None to search it at every token.
        alpha_max: the largest alpha that the search may choose.
        active: with several experts: `one` acts on a token, or `all`.

    Raises:
        InputError: names the option, its value and the remedy; nothing was written.
    """
    if not experts:
        raise InputError("--expert is missing: give the directory of at least one fine-tuned copy of --base")
    if len(experts) > _FILES:
        raise InputError(f"--expert is given {len(experts)} times: {_FILES} are the most")
    if alpha is not None and not 0 <= alpha < math.inf:
        raise InputError(f"--alpha is {alpha:g}: give 'dynamic' or a number of at least 0")
    if not 0 < alpha_max < math.inf:
        raise InputError(f"--alpha-max is {alpha_max:g}: give a number above 0")
    if active not in get_args(Active):
        raise InputError(f"--active is {active!r}: use one of {', '.join(map(repr, get_args(Active)))}")
    members = {BASE: ("--base", base)}
    members |= {f"trimtab_expert_{chr(ord('a') + index)}": ("--expert", path) for index, path in enumerate(experts)}
    rest: dict[str, Any] = {"method": "fusion", "strength": alpha, "alpha_max": alpha_max, "active": active}
    _write(output, ("--target", target), members, rest)


def compose_steer(output: Path, expert: Path, base: Path, *, gamma: float) -> None:
    """Write a directory for STEER's contrast of an expert with its base.

    Args:
        output: to be made; may exist if it is empty.
        expert: directory of the fine-tuned model.
        base: of the model that it was fine-tuned from.
        gamma: at least 0; how far to go away from the base.

    Raises:
        InputError: names the option, its value and the remedy; nothing was written.
    """
    if not 0 <= gamma < math.inf:
        raise InputError(f"--gamma is {gamma:g}: give a number of at least 0")
    _write(output, ("--expert", expert), {BASE: ("--base", base)}, {"method": "steer", "strength": gamma})


Named = tuple[str, Path]
"""An option and the directory it names."""


def _write(output: Path, target: Named, members: Mapping[str, Named], rest: Mapping[str, Any]) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"--output is {str(output)!r}, which exists: give a new directory or an empty one")
    config = _config(*target)
    configs = {name: _config(*member) for name, member in members.items()}
    named = [(target[0], config), *((members[name][0], found) for name, found in configs.items())]
    common_width([(option, _integer(found, "vocab_size", option)) for option, found in named])
    for option, path in members.values():
        check_same_ids(option, path, *target)

    composition = Composition(architectures=tuple(config["architectures"]), members=tuple(members), **rest)
    composed = {**config, "architectures": [ARCHITECTURE], KEY: {"format": FORMAT, **asdict(composition)}}
    lengths = [_length(found) for found in (config, *configs.values())]
    known = [length for length in lengths if length is not None]
    if lengths[0] is not None and min(known) < lengths[0]:
        # all members read the whole text: vLLM takes the least of the lengths it finds
        composed["model_max_length"] = min(known)

    existed = output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        for path in sorted(target[1].iterdir()):
            if path.is_file() and path.name != "config.json" and not path.name.startswith("."):
                (output / path.name).symlink_to(path.resolve())
        for name, (_, path) in members.items():
            (output / name).symlink_to(path.resolve(), target_is_directory=True)
        (output / "config.json").write_text(json.dumps(composed, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        for path in output.iterdir():
            path.unlink()
        if not existed:
            shutil.rmtree(output)
        raise InputError(f"--output is {str(output)!r}, which cannot be written: {error}") from error


def _config(option: str, path: Path) -> dict[str, Any]:
    """A model directory's `config.json`, its weights seen to be there."""
    if not path.is_dir():
        raise InputError(
            f"{option} is {str(path)!r}, which is no directory: give that of a model (`hf download ID` prints it)"
        )
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{option} is {str(path)!r}, whose config.json cannot be read: {error}") from None
    if not isinstance(config, dict) or not config.get("architectures"):
        raise InputError(f"{option} is {str(path)!r}, whose config.json names no architecture: give a causal LM")
    if KEY in config:
        raise InputError(f"{option} is {str(path)!r}, which is composed already: give the models it was made of")
    if not any(file.endswith((".safetensors", ".bin", ".pt")) for file in os.listdir(path)):
        raise InputError(f"{option} is {str(path)!r}, which holds no weights: give the directory of a whole model")
    return config


def _integer(config: Mapping[str, Any], key: str, option: str) -> int:
    found = config.get(key)
    if not isinstance(found, int):
        raise InputError(f"{option} has no {key} in its config.json: give a causal LM of text")
    return found


def _length(config: Mapping[str, Any]) -> int | None:
    """Positions that a model was made for, where it says so."""
    return next((config[key] for key in _LENGTHS if isinstance(config.get(key), int)), None)
