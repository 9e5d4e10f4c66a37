"""The program: its commands, exit codes and signals."""

import atexit
import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer

from jaxmix.converters.cli.commands import SUMMARIES, Commands, register
from jaxmix.converters.cli.compile_cache import use_compile_cache
from jaxmix.converters.cli.console import print_error, show_hub_requests
from jaxmix.converters.cli.hints import spelled
from jaxmix.converters.files.path_suggestions import MistypedPathError
from jaxmix.errors import CheckpointError, JaxmixError, VerificationError, spelling

__all__ = ["app", "commands", "main"]

# Older versions of typer use click's class, newer ones their own, with the same name.
_UsageError: Any = typer.BadParameter.__mro__[1]
_UNVERIFIED = 3
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

app = typer.Typer(
    name="jaxmix",
    cls=Commands,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_set: bool) -> None:
    if is_set:
        typer.echo(f"jaxmix {installed_version('jaxmix-peft')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Mix adapters of different kinds and formats: PEFT, kohya, LyCORIS, diffusers and others.

    Start with `jaxmix demo`. Then examine one of your adapters with `jaxmix inspect`, and merge
    several into a model with `jaxmix merge`. `jaxmix COMMAND --help` shows examples.

    An adapter is given by its path or hub id, with an optional strength after a colon: `lora`,
    `lora:0.6`. With `--json` a command prints its result or error to stdout as one JSON document.

    **Exit codes**

    - 0: success
    - 1: an input was refused; the message says what was found, what was expected, and what to do
    - 2: invalid command line
    - 3: `merge --verify` found that the output is wrong
    - 130, 143: stopped by Ctrl-C or SIGTERM; outputs are unchanged
    """


register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        arguments: The arguments of the command line; by default those of this process.

    Returns:
        The exit code: 0 for success, 1 for a refused input, 2 for an invalid command line, 3 for a
        failed verification, 130 for Ctrl-C, 143 for SIGTERM.
    """
    if arguments is None:  # a process of its own
        use_compile_cache(os.environ)
        # Without this, Python searches JAX's objects for garbage as it ends: a quarter of a second.
        atexit.register(gc.freeze)
    args = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in args
    try:

        def spell(name: str, literal: str) -> str:
            return spelled(args[0] if args else "", _options())(name, literal)

        with _terminable(), spelling(spell), show_hub_requests(as_json=as_json):
            code = app(args or ["--help"], prog_name="jaxmix", standalone_mode=False) or 0
    except MistypedPathError as error:
        message = f"{error}{_retyped(args, error.path, error.near)}"
        print_error(message, CheckpointError.__name__, as_json=as_json)
        return 1
    except JaxmixError as error:
        print_error(str(error), type(error).__name__, as_json=as_json)
        return _UNVERIFIED if isinstance(error, VerificationError) else 1
    except (OSError, ValueError) as error:  # from a path that was not checked earlier
        if not isinstance(error, OSError | UnicodeError) and "null byte" not in str(error):
            raise
        print_error(f"{error}. Check the paths.", type(error).__name__, as_json=as_json)
        return 1
    except _UsageError as error:
        print_error(_usage(error), "UsageError", as_json=as_json)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if code in (_INTERRUPTED, _TERMINATED):
        kind = "Interrupted" if code == _INTERRUPTED else "Terminated"
        print_error("stopped; outputs are unchanged.", kind, as_json=as_json)
    return code


def commands() -> dict[str, Any]:
    """Returns all commands with their options."""
    group: Any = typer.main.get_command(app)
    return {name: group.load(name) for name in SUMMARIES}


def _options() -> dict[str, dict[str, str]]:
    """Returns each command's flags, with the placeholder of their value in the help."""
    return {
        name: {flag: param.metavar or "…" for param in command.params for flag in param.opts}
        for name, command in commands().items()
    }


def _usage(error: Any) -> str:
    """Describes what is wrong with a command line, and refers to the help."""
    hint = f" Try: {error.ctx.command_path} --help" if error.ctx else ""
    # Errors that a command raises itself are of no single parameter, and say what is wrong.
    is_complete = isinstance(error, typer.BadParameter) and not (error.param or error.param_hint)
    return f"{error.message if is_complete else error.format_message()}{hint}"


def _retyped(args: Sequence[str], path: str, near: str) -> str:
    """Returns a line with the command to type instead; "" if the path is not in the arguments."""
    corrected = [
        near + arg.removeprefix(path) if arg == path or arg.startswith(f"{path}:") else arg
        for arg in args
    ]
    return "" if corrected == list(args) else f"\nTry: jaxmix {shlex.join(corrected)}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into an exception, so unfinished outputs are deleted."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # signal handlers need the main thread
        yield
        return

    def end(*_: Any) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
