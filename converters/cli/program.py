"""The program itself: its commands, and how they end."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer

from jaxmix.converters.cli.combine import combine
from jaxmix.converters.cli.console import print_error, show_hub_requests
from jaxmix.converters.cli.convert import convert
from jaxmix.converters.cli.demo import demo
from jaxmix.converters.cli.export import export
from jaxmix.converters.cli.fit import fit
from jaxmix.converters.cli.hints import spelled
from jaxmix.converters.cli.inspect import inspect
from jaxmix.converters.cli.merge import merge
from jaxmix.errors import JaxmixError, VerificationError, spelling

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (demo, inspect, merge, convert, export, fit, combine)

# typer's older versions take it from click, the newer ones have their own; both call it this.
_UsageError: Any = typer.BadParameter.__mro__[1]
_UNVERIFIED = 3
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

app = typer.Typer(
    name="jaxmix",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxmix {installed_version('jaxmix-peft')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version),
    ] = False,
) -> None:
    """Mix adapters of different kinds: PEFT's, kohya's, LyCORIS's, diffusers' and others.

    Begin with `jaxmix demo`. Then look at an adapter of yours with `jaxmix inspect`, and put
    several of them into a model with `jaxmix merge`. `jaxmix COMMAND --help` shows examples.

    An adapter is named by its path or hub id, with a strength after a colon: `lora`, `lora:0.6`.
    With `--json` a command tells its result, or its error, as one JSON document on stdout.

    **Exit codes**

    - 0: done
    - 1: refused; the message says what was found, what was expected, and what to do
    - 2: the command line makes no sense
    - 3: `merge --verify` found the output to be wrong
    - 130, 143: stopped by Ctrl-C, by SIGTERM; outputs are as they were
    """


for _command in COMMANDS:
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        arguments: the words of the command line; those of this process by default.

    Returns:
        The exit code: 0, 1 for what jaxmix refuses, 2 for a command line that makes no sense, 3 for
        a merge that was not verified, 130 for Ctrl-C, 143 for SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:

        def spell(name: str, literal: str) -> str:
            return spelled(words[0] if words else "", _options())(name, literal)

        with _terminable(), spelling(spell), show_hub_requests(as_json=as_json):
            code = app(words or ["--help"], prog_name="jaxmix", standalone_mode=False) or 0
    except JaxmixError as error:
        print_error(str(error), type(error).__name__, as_json=as_json)
        return _UNVERIFIED if isinstance(error, VerificationError) else 1
    except (OSError, UnicodeError) as error:  # from a path that was not checked before
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
        print_error("stopped; outputs are as they were.", kind, as_json=as_json)
    return code


def _options() -> dict[str, dict[str, str]]:
    """For each command its flags, and what stands for their value in its help."""
    commands: Any = typer.main.get_command(app)
    return {
        name: {flag: one.metavar or "…" for one in command.params for flag in one.opts}
        for name, command in commands.commands.items()
    }


def _usage(error: Any) -> str:
    """What makes no sense in a command line, and where to read on."""
    where = f" Try: {error.ctx.command_path} --help" if error.ctx else ""
    return f"{error.format_message()}{where}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the program as an exception does, so that what was begun is removed."""
    if threading.current_thread() is not threading.main_thread():  # where signals can't be taken
        yield
        return

    def end(*_: Any) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
