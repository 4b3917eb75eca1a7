"""`trimtab lm-eval`: lm-evaluation-harness's own command, which then knows `--model trimtab`."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import InputError

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Every option is the harness's, `--help` too."""


def lm_eval(
    context: typer.Context,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[OPTIONS OF lm_eval run]")] = None,
) -> None:
    """Run lm-evaluation-harness's tasks on a set-up.

    trimtab lm-eval --model_args pretrained=smollm2-135m,method=quantized:bits=8 --tasks gsm8k
    """
    try:
        from .integrations.lm_eval import main
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise InputError("lm-evaluation-harness is not installed: pip install 'trimtab[lm-eval]'") from None
    main([*(arguments or []), *context.args])
