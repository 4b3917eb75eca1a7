"""The expert's prompt from the fields of a seed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment

from ..errors import InputError

Fields = Mapping[str, Any]


class Template:
    """A Jinja2 template over a seed's fields, such as `A {{ label }} review:`; one newline at its end is dropped.

    Attributes:
        source: the template's text.
        fields: the fields that it names.

    Raises:
        InputError: the text is no template.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        try:
            self._template = environment.from_string(source)
            self.fields = frozenset(find_undeclared_variables(environment.parse(source)))
        except TemplateError as error:
            raise InputError(
                f"the template {source!r:.60} is not Jinja2 ({error}): give text with {{{{ field }}}}"
            ) from error

    def prompts(self, seeds: Sequence[Fields]) -> list[str]:
        """The prompt of each seed.

        Raises:
            InputError: no seed has a field that is named, one seed lacks a field that it needs, or a prompt is empty.
        """
        self._check_fields(seeds)
        found = []
        for index, seed in enumerate(seeds):
            try:
                prompt = self._template.render(**{str(name): value for name, value in seed.items()})
            except Exception as error:  # filters raise whatever they like
                raise InputError(f"the template cannot be filled from seed {index} ({error}): add the field") from error
            if not prompt.strip():
                raise InputError(f"the template gives an empty prompt for seed {index}: give some text")
            found.append(prompt)
        return found

    def used(self, seed: Fields) -> dict[str, Any]:
        """The fields of a seed that the template names: what the prompt asked for."""
        return {name: seed[name] for name in sorted(self.fields) if name in seed}

    def _check_fields(self, seeds: Sequence[Fields]) -> None:
        known = sorted({str(name) for seed in seeds for name in seed})
        for name in sorted(self.fields):
            if name in known:
                continue
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the seeds have {', '.join(known)}"
            raise InputError(f"the template names {name!r}, which no seed has: {hint}")
