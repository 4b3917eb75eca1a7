"""The `trimtab` command: one line per command here, one file per command beside it.

Nothing here imports torch or transformers: `--help`, `--version` and a mistyped option answer at once.
"""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__
from .ab_command import ab
from .calibrate_command import calibrate
from .compose_command import compose
from .doctor import doctor
from .errors import InputError
from .generate_command import generate
from .lm_eval_command import CONTEXT as AS_THE_HARNESS
from .lm_eval_command import lm_eval
from .measure_command import measure
from .route_command import route
from .sweep_command import sweep
from .synthesize_command import synthesize
from .temperature_command import temperature

_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns whatever a command raises into one line on stderr and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        settings: dict[str, Any] = {"debug": False}
        extra |= {"standalone_mode": False, "obj": settings}
        try:
            # without standalone mode an exit code is returned, also the one of Ctrl-C
            code = super().main(*args, **extra)
        except (Exception, KeyboardInterrupt) as error:
            code = _report(error, debug=settings["debug"])
        if code == _INTERRUPTED and sys.stderr.isatty():
            print(file=sys.stderr)  # the shell's prompt belongs on a line of its own
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, *, debug: bool) -> int:
    """Print what went wrong; the exit code: 2 for bad input, 1 for anything else."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2  # the help was printed already
    if debug:
        traceback.print_exception(error)
    bad_input = isinstance(error, InputError)
    if hasattr(error, "format_message"):  # typer's own errors: their class has no public name
        bad_input, message = True, _usage(error)
    elif isinstance(error, ModuleNotFoundError):
        message = f"the package {error.name} is not installed: `trimtab doctor` says how to install it"
    elif bad_input:
        message = str(error)
    else:
        hint = "" if debug else " (--debug shows where)"
        message = f"unexpected {type(error).__name__}: {error}{hint}"
    print(f"trimtab: error: {' '.join(message.split())}", file=sys.stderr)
    return 2 if bad_input else 1


def _usage(error: Any) -> str:
    """The message of one of typer's errors, with the nearest option for a mistyped one."""
    message: str = error.format_message()
    param = getattr(error, "param", None)
    if param is not None and error.message:
        return f"{max(param.opts, key=len)} {error.message}"
    context = getattr(error, "ctx", None)
    typed = re.search(r"No such option: (\S+)", message)
    if typed and context is not None:
        known = [name for option in context.command.params for name in option.opts if name.startswith("--")]
        near = difflib.get_close_matches(typed[1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`{context.command_path} --help` lists the options"
        return f"there is no option {typed[1]}: {hint}"
    if "unexpected extra argument" in message:
        return f"{message}: put text of several words into quotes"
    return message


def _version(wanted: bool) -> None:
    if wanted:
        print(f"trimtab {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Decode-time methods for large language models: small models and small corrections steer a large one."""


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.callback()(_root)
app.command()(generate)
app.command()(ab)
app.command()(sweep)
app.command()(synthesize)
app.command()(measure)
app.command()(route)
app.command()(doctor)
app.command(context_settings=AS_THE_HARNESS)(lm_eval)
app.add_typer(calibrate, name="calibrate")
app.add_typer(compose, name="compose")
app.add_typer(temperature, name="temperature")

if __name__ == "__main__":
    app(prog_name="trimtab")
