"""Fills the page's templates with a result and writes it; nothing in the page is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...errors import InputError
from ..records import FORMAT, SIDES
from . import plots
from .figures import forests, label_of
from .frontier import figure_of, frontier
from .numbers import short
from .per_prompt import rows_of
from .texts import texts_of


def write_html(result: Mapping[str, Any], path: Path) -> None:
    """Write a comparison or a sweep as one self-contained HTML file.

    Args:
        result: what `Comparison.as_dict` gave, or the JSON of a sweep (`"kind": "sweep"`).
        path: the file; its directory exists.

    Raises:
        InputError: the result has another format's number.
    """
    # a lone surrogate, which some tokenizers let through, has no UTF-8
    Path(path).write_bytes(html_of(result).encode("utf-8", "replace"))


def html_of(result: Mapping[str, Any]) -> str:
    """The page of `write_html`.

    Raises:
        InputError: as `write_html`.
    """
    if result.get("format") != FORMAT:
        raise InputError(f"the result's format is {result.get('format')!r}: this trimtab reads format {FORMAT}")
    environment = Environment(
        loader=PackageLoader(__package__, "page"),
        autoescape=True,  # texts of models are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "label": label_of}

    def source(name: str) -> Markup:
        return Markup(environment.loader.get_source(environment, name)[0])  # type: ignore[union-attr]

    style, script = source("report.css"), Markup("\n").join(source(name) for name in ("theme.js", "texts.js"))
    parts = _sweep(result) if result.get("kind") == "sweep" else _comparison(result)
    return environment.get_template(parts.pop("template")).render(
        **parts, result=result, style=style, script=script, style_hash=_hash(style), script_hash=_hash(script)
    )


def _comparison(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = rows_of(result["records"])
    groups = list(dict.fromkeys(row.group for row in rows))
    by_group = plots.styles(groups)
    names = list(dict.fromkeys(figure["name"] for figures in result["groups"].values() for figure in figures))
    sides = {side: side.upper() for side in SIDES}
    return {
        "template": "comparison.html.j2",
        "title": " against ".join(str(result["setups"][side].get("setup", side.upper())) for side in SIDES),
        "forests": forests(result["figures"]),
        "rows": rows,
        "scored": any(row.a is not None and row.a.right is not None for row in rows),
        "scatters": [found for seconds in (False, True) if (found := plots.scatter(rows, by_group, seconds=seconds))],
        "strips": plots.ratio_strips(rows, by_group),
        "legend": plots.as_legend(by_group),
        "group_forests": [(name, _by_group(result["groups"], name)) for name in names],
        "failures": [(sides[side], result["failures"].get(side, 0)) for side in SIDES],
        "facts": facts_of(result, {f"set-up {sides[side]}": result["setups"][side] for side in SIDES}),
        **_texts(result, [SIDES], sides),
    }


def _by_group(groups: Mapping[str, list[Mapping[str, Any]]], name: str) -> Any:
    found = [(group, figure) for group, figures in groups.items() for figure in figures if figure["name"] == name]
    return forests([figure for _, figure in found], [group for group, _ in found])


def _sweep(result: Mapping[str, Any]) -> dict[str, Any]:
    points = result["points"]
    labels = [point["label"] for point in points]
    baseline = {key: value for key, value in result["baseline"].items() if key not in ("pareto", "failures")}
    sides = {"baseline": "baseline", **{label: label for label in labels}}
    names = list(dict.fromkeys(figure["name"] for point in points for figure in point["figures"]))
    found = {name: [(p["label"], f) for p in points if (f := figure_of(p, name)) is not None] for name in names}
    groups = list(dict.fromkeys(record["group"] for record in result["records"]))
    failures = {"baseline": result["baseline"].get("failures", 0)} | {p["label"]: p["failures"] for p in points}
    return {
        "template": "sweep.html.j2",
        "title": f"{result['setup'].get('setup', 'sweep')} by setting",
        "frontier": frontier(result),
        "figure_forests": [
            (name, forests([figure for _, figure in pairs], [label for label, _ in pairs]))
            for name, pairs in found.items()
        ],
        "legend": plots.as_legend(plots.styles(groups)),
        "failures": list(failures.items()),
        "facts": facts_of(result, {"baseline": baseline, "swept": result["setup"]}),
        **_texts(result, [("baseline", label) for label in labels], sides),
    }


def _texts(result: Mapping[str, Any], pairings: list[tuple[str, str]], sides: Mapping[Any, str]) -> dict[str, Any]:
    """Texts beside each other, and those that there are none of."""
    texts = texts_of(result, pairings, sides)
    return {
        "texts": embedded(texts),
        "pairs": len(texts["pairs"]),
        "differing": sum(not pair["same"] for pair in texts["pairs"]),
        "others": [(other, sides[other]) for _, other in pairings] if len(pairings) > 1 else [],
        "names": sides,
        "failed": [record for record in result["records"] if record["error"]],
    }


def embedded(data: Any) -> Markup:
    """JSON inside a `<script>` element, which neither it nor anything in it can leave."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def facts_of(result: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Settings and provenance as headed lists of a name and a value, however deep they were."""
    provenance = dict(result["provenance"])
    command = provenance.pop("command", None)
    versions = provenance.pop("versions", {})
    heads = {**more, "settings": result["settings"], "machine and time": provenance, "versions": versions}
    lists = {head: list(_flat("", value)) for head, value in heads.items()}
    if command is not None:
        lists["command"] = [("", command if isinstance(command, str) else " ".join(map(str, command)))]
    return {head: found for head, found in lists.items() if found}


def _flat(prefix: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix} {key}".strip(), inner)
    elif value is not None:
        yield prefix.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _hash(text: str) -> str:
    """As a content security policy names a piece of the page that may be used."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
