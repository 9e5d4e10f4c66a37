"""The program as a whole: how it ends, what it says of itself, and what a shell can ask it."""

import json
import os
import re
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from jaxmix.converters import cli
from jaxmix.converters.cli import program
from jaxmix.converters.cli.console import print_json

from .running import Captured, main, run, told


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["merge"], "Missing argument"),
        (["merge", "base"], "Missing option"),
        (["merge", "base", "-a", "lora"], "Missing option"),
        (["merge", "base", "lora", "-o", "out"], "Missing option"),
        (["merge", "base", "-a", "x", "y", "-o", "out"], "unexpected extra argument"),
        (["inspect"], "Missing argument"),
        (["convert", "x"], "Missing option"),
        (
            ["convert", "x", "--to", "gguf", "-o", "y"],
            "'gguf' is not one of peft, kohya, diffusers",
        ),
        (["export", "-o", "x"], "Missing option"),
        (["combine", "-a", "x", "-o", "y"], "Missing option"),
        (["fit", "base", "-a", "x"], "Missing option"),
        (["merg"], "No such command 'merg'"),
        (["inspect", "--jsn", "x"], "No such option"),
    ],
)
def test_usage(words: list[str], text: str, capsys: Captured) -> None:
    """A command line that makes no sense is exit code 2, and says where to read on."""
    assert main(*words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and text in said.err and said.out == ""
    command = words[0] if words[0] != "merg" else ""
    assert f"Try: jaxmix {command}".rstrip() in said.err and "--help" in said.err
    document = told(capsys, *words, code=2)
    assert document["kind"] == "UsageError" and text in document["error"]


COMMANDS = ("demo", "inspect", "merge", "convert", "export", "fit", "combine")


def test_help(capsys: Captured) -> None:
    """It is shown without words too; it lists the commands, and how the program ends."""
    for words in (("--help",), ("-h",), ()):
        assert main(*words) == 0
        said = capsys.readouterr().out
        assert all(re.search(rf"\b{command}\b", said) for command in COMMANDS)
        assert "Start with jaxmix demo" in said and "130, 143: stopped by Ctrl-C" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, capsys: Captured) -> None:
    """It teaches with examples, and each of them is a command line that makes sense."""
    assert main(command, "-h") == 0
    said = capsys.readouterr().out
    assert "Examples" in said and "--json" in said
    documented = next(one for one in program.COMMANDS if one.__name__ == command).__doc__ or ""
    examples = re.findall(r"`jaxmix ([^`]+)`", documented.partition("**Examples**")[2])
    assert len(examples) >= 3
    group: Any = typer.main.get_command(cli.app)
    for example in examples:
        name, *words = example.split()
        with group.commands[name].make_context(name, words, resilient_parsing=False):
            pass


def test_version(capsys: Captured) -> None:
    """That of the distribution."""
    assert main("--version") == 0
    assert capsys.readouterr().out == f"jaxmix {version('jaxmix-peft')}\n"


def test_as_a_module() -> None:
    """`python -m jaxmix` is the program too; its exit code is the process's."""
    done = run("inspect", "no/such/thing", "--json", module="jaxmix")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["kind"] == "CheckpointError"


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (typer.Abort(), 130, "Interrupted"),
        (SystemExit(143), 143, "Terminated"),
    ],
)
def test_stopped(
    raised: BaseException,
    code: int,
    kind: str,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By whatever it was."""

    def stop(*_: Any, **how: Any) -> None:
        raise raised

    monkeypatch.setattr(program, "app", stop)
    assert told(capsys, "inspect", "x", code=code) == {
        "error": "stopped; outputs are unchanged.",
        "kind": kind,
    }
    assert main("inspect", "x") == code
    assert capsys.readouterr().err == "error: stopped; outputs are unchanged.\n"


def test_other_ends(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit is one; what nobody foresaw is not hidden."""

    def end(code: Any) -> Any:
        def app(*_: Any, **how: Any) -> None:
            raise code

        return app

    for raised, code in ((SystemExit(), 0), (SystemExit("no"), 1), (SystemExit(7), 7)):
        monkeypatch.setattr(program, "app", end(raised))
        assert main("inspect", "x") == code
    monkeypatch.setattr(program, "app", end(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main("inspect", "x")


def test_in_a_thread(capsys: Captured) -> None:
    """Where no signal can be taken it runs all the same."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main("--version")))
    thread.start()
    thread.join()
    assert codes == [0]


def test_json_of_what_json_has_not(capsys: Captured) -> None:
    """A number that is none is null; a path is a text."""
    print_json({"a": [float("nan"), 1.0], "b": {Path("x"): (Path("y"), float("inf"))}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": {"x": ["y", None]}}


# ---------------------------------------------------------------- completion

ASKED = """
import os, sys
from jaxmix.converters.cli import main

for line in sys.stdin.read().splitlines():
    words = line.split(" ")
    os.environ.update(COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    print(f"> {line}", flush=True)
    main([])
    print(flush=True)
"""


def test_completion() -> None:
    """A shell is told commands, options and names that options take; files it finds itself."""
    lines = [
        "jaxmix me",
        "jaxmix combine --method dare_t",
        "jaxmix convert x --to ",
        "jaxmix convert x --from k",
        "jaxmix fit base --per ",
        "jaxmix merge base --unt",
        "jaxmix merge base --layout t",
        "jaxmix merge ",
        "jaxmix merge base -a ",
        "jaxmix inspect x --base ",
    ]
    env = {**os.environ, "_JAXMIX_COMPLETE": "complete_bash"}
    asked = subprocess.run(
        [sys.executable, "-c", ASKED], input="\n".join(lines), env=env, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    found = {}
    for part in asked.stdout.split("> ")[1:]:
        line, *answers = part.splitlines()
        found[line] = [answer for answer in answers if answer]
    assert found == {
        "jaxmix me": ["merge"],
        "jaxmix combine --method dare_t": ["dare_ties", "dare_ties_svd"],
        "jaxmix convert x --to ": ["peft", "kohya", "diffusers", "mix", "recipe"],
        "jaxmix convert x --from k": ["kohya"],
        "jaxmix fit base --per ": ["mix", "adapter", "site"],
        "jaxmix merge base --unt": ["--untie"],
        "jaxmix merge base --layout t": ["torch", "torchax", "tunix", "tunix_gemma"],
        "jaxmix merge ": [],
        "jaxmix merge base -a ": [],
        "jaxmix inspect x --base ": [],
    }


def test_the_completion_script(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bash falls back on the names of files."""
    monkeypatch.setenv("_JAXMIX_COMPLETE", "source_bash")
    assert main() == 0
    said = capsys.readouterr().out
    assert "_JAXMIX_COMPLETE=complete_bash" in said and "complete -o default" in said
