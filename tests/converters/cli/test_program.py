"""The whole program: exit codes, help, version and shell completion."""

import json
import os
import re
import subprocess
import sys
import threading
from importlib.metadata import version
from typing import Any

import pytest
import typer

from jaxmix.converters.cli import program

from .running import Captured, main, run, run_json


@pytest.mark.parametrize(
    ("args", "text"),
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
        (
            ["merge", "base", "-a", "x", "-o", "y", "--layout", "tunx"],
            "openpi, torchax, tunix, tunix_gemma. Did you mean tunix?",
        ),
        (["export", "-o", "x"], "Missing option"),
        (["combine", "-a", "x", "-o", "y"], "Missing option"),
        (["fit", "base", "-a", "x"], "Missing option"),
        (["merg"], "No such command 'merg'"),
        (["inspect", "--jsn", "x"], "No such option"),
    ],
)
def test_usage_error_is_exit_code_2(args: list[str], text: str, capsys: Captured) -> None:
    """An invalid command line exits with code 2 and points to the help."""
    assert main(*args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and text in captured.err and captured.out == ""
    command = args[0] if args[0] != "merg" else ""
    assert f"Try: jaxmix {command}".rstrip() in captured.err and "--help" in captured.err
    document = run_json(capsys, *args, code=2)
    assert document["kind"] == "UsageError" and text in document["error"]


COMMANDS = ("demo", "inspect", "merge", "convert", "export", "fit", "combine")


def test_help_lists_commands_and_exit_codes(capsys: Captured) -> None:
    """The help lists the commands and exit codes, and is also printed without arguments."""
    for args in (("--help",), ("-h",), ()):
        assert main(*args) == 0
        output = capsys.readouterr().out
        assert all(re.search(rf"\b{command}\b", output) for command in COMMANDS)
        assert "Start with jaxmix demo" in output and "130, 143: stopped by Ctrl-C" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_valid_examples(command: str, capsys: Captured) -> None:
    """Each command's help has examples, and each example parses."""
    assert main(command, "-h") == 0
    output = capsys.readouterr().out
    assert "Examples" in output and "--json" in output
    commands = program.commands()
    documented = commands[command].callback.__doc__ or ""
    examples = re.findall(r"`jaxmix ([^`]+)`", documented.partition("**Examples**")[2])
    assert len(examples) >= 3
    for example in examples:
        name, *args = example.split()
        with commands[name].make_context(name, args, resilient_parsing=False):
            pass


ANSWERED = """
import sys
from jaxmix.converters.cli import main

main(sys.argv[1:])
print("imported:", sorted({"jax", "numpy", "flax"} & set(sys.modules)))
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_jax(command: str) -> None:
    """It answers at once."""
    args = [command, "--help"] if command else ["--help"]
    output = subprocess.check_output([sys.executable, "-c", ANSWERED, *args], text=True)
    assert "Examples" in output or not command
    assert output.splitlines()[-1] == "imported: []"


VALUES = {
    "--layout": ("merge", "maxtext_q", "maxtext_qwen"),
    "--method": ("combine", "mod", "model_stock"),
    "--to": ("convert", "dif", "diffusers"),
    "--per": ("fit", "si", "site"),
}


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        *((f"jaxmix {command[:2]}", command) for command in COMMANDS),
        *((f"jaxmix {command} --js", "--json") for command in COMMANDS),
        *((f"jaxmix {name} {flag} {start}", x) for flag, (name, start, x) in VALUES.items()),
    ],
)
def test_completion_imports_no_jax(line: str, answer: str) -> None:
    """It answers at once, for the names of commands, of options, and of their values."""
    env = {**os.environ, "_JAXMIX_COMPLETE": "complete_bash", "COMP_WORDS": line}
    env["COMP_CWORD"] = str(line.count(" "))
    output = subprocess.check_output(
        [sys.executable, "-c", ANSWERED.replace("main(sys.argv[1:])", "main([])")],
        env=env,
        text=True,
    )
    *answers, imported = output.splitlines()
    assert answer in answers
    assert imported == "imported: []"


def test_version_is_that_of_the_distribution(capsys: Captured) -> None:
    """`--version` prints the distribution's version."""
    assert main("--version") == 0
    assert capsys.readouterr().out == f"jaxmix {version('jaxmix-peft')}\n"


def test_python_m_jaxmix_is_the_program() -> None:
    """`python -m jaxmix` runs the program and exits with its code."""
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
def test_interruption_is_reported(
    raised: BaseException,
    code: int,
    kind: str,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every kind of interruption has its exit code and message."""

    def stop(*_: Any, **how: Any) -> None:
        raise raised

    monkeypatch.setattr(program, "app", stop)
    assert run_json(capsys, "inspect", "x", code=code) == {
        "error": "stopped; outputs are unchanged.",
        "kind": kind,
    }
    assert main("inspect", "x") == code
    assert capsys.readouterr().err == "error: stopped; outputs are unchanged.\n"


def test_exits_and_unexpected_errors(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit keeps its code; an unexpected error is not hidden."""

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


def test_program_runs_in_a_thread(capsys: Captured) -> None:
    """The program runs in a thread, where signal handlers cannot be set."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main("--version")))
    thread.start()
    thread.join()
    assert codes == [0]


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


def test_completion_of_commands_options_and_values() -> None:
    """Completion offers commands, options and their values, and leaves files to the shell."""
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
    completed = subprocess.run(
        [sys.executable, "-c", ASKED], input="\n".join(lines), env=env, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    found = {}
    for part in completed.stdout.split("> ")[1:]:
        line, *answers = part.splitlines()
        found[line] = [answer for answer in answers if answer]
    assert found == {
        "jaxmix me": ["merge"],
        "jaxmix combine --method dare_t": ["dare_ties", "dare_ties_svd"],
        "jaxmix convert x --to ": "peft kohya diffusers comfyui original mix recipe".split(),
        "jaxmix convert x --from k": ["kohya"],
        "jaxmix fit base --per ": ["mix", "adapter", "site"],
        "jaxmix merge base --unt": ["--untie"],
        "jaxmix merge base --layout t": ["torch", "torchax", "tunix", "tunix_gemma"],
        "jaxmix merge ": [],
        "jaxmix merge base -a ": [],
        "jaxmix inspect x --base ": [],
    }


def test_completion_script_falls_back_to_files(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bash script falls back to file names."""
    monkeypatch.setenv("_JAXMIX_COMPLETE", "source_bash")
    assert main() == 0
    output = capsys.readouterr().out
    assert "_JAXMIX_COMPLETE=complete_bash" in output and "complete -o default" in output
