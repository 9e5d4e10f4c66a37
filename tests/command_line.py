"""Writes docs/command_line.md: the help of each command, and real runs on the demo's model.

python -m tests.command_line          all of it
python -m tests.command_line help     the help alone; the runs stay as they are
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from jaxmix.converters.cli.program import COMMANDS

__all__ = ["PAGE", "help_texts", "main", "versions"]

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "command_line.md", DOCS / "inspect.png"
# What a terminal would change: its width, its colours, and what CI says of itself.
ENVIRONMENT = {"COLUMNS": "92", "LINES": "40", "NO_COLOR": "1", "TERM": "dumb", "LANG": "C.UTF-8"}
FORCED = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH", "TTY_COMPATIBLE")

# Each is run in the folder that the first one makes; what it writes, the next ones read.
RUNS = (
    ("jaxmix inspect try/lora try/loha:0.5", "The adapters, and what they are made of:"),
    (
        "jaxmix inspect try/lora try/loha try/oft --base try/base --plot inspect.png",
        "And what they do, as a picture too:",
    ),
    (
        "jaxmix merge try/base -a try/lora:0.5 -a try/loha:0.5 -o merged --verify",
        "A mix in a model, read back and proven:",
    ),
    (
        "jaxmix convert try/lora:0.5 try/loha --to recipe -o both.json",
        "A mix as a small file, which the other commands take for an adapter:",
    ),
    ("cat both.json", ""),
    (
        "jaxmix export -a both.json --rank 16 -o for-peft",
        "One LoRA for PEFT, and what that costs:",
    ),
    (
        "jaxmix fit try/base -a both.json --text try/text/bible.txt -o learned",
        "Strengths that are learned on a text:",
    ),
    (
        "jaxmix combine -a try/lora -a try/loha:0.5 -m ties --density 0.3 --base try/base "
        "--rank 16 -o ties",
        "TIES over two kinds:",
    ),
    (
        "jaxmix convert both.json --to kohya -o both.safetensors --json",
        "And what is refused, as a program sees it:",
    ),
)

TEXT = """\
# The command line

{made}
This page is written by `make docs`, which runs all that it shows; a test holds it to the program's
own help.

`jaxmix` has a command for each thing to do. An adapter is named by its path or hub id, with a
strength after a colon; `-a` once for each, the one to apply first first. A mix that was saved, and
a recipe, are adapters too. `python -m jaxmix` is the same program.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | refused; the message says what was found, what was expected, and what to do |
| 2 | the command line makes no sense |
| 3 | `merge --verify` found the output to be wrong |
| 130, 143 | stopped by Ctrl-C, by SIGTERM; outputs are as they were |

With `--json` a command writes one JSON document to stdout, and nothing else; an error is one too,
`{{"error": …, "kind": …}}`, beside the exit code. Progress goes to stderr, and is not shown with
`--json` unless that is a terminal.

For completion in the shell: `jaxmix --install-completion`. It knows commands, options, and the
names of methods and formats; files are the shell's own.

"""
_TOUR = """\
## A tour

`jaxmix demo --copy try` puts the demo's small model, its three adapters and texts into the folder
`try`, so that every line here can be tried.

"""
_HELPS = "\n## Help\n\n"


def versions() -> str:
    """What laid out the help that is on the page."""
    return f"typer {version('typer')}, rich {version('rich')}"


def _environment() -> dict[str, str]:
    """The environment in which all of it is run."""
    kept = {key: value for key, value in os.environ.items() if key not in FORCED}
    return {**kept, **ENVIRONMENT}


_HELP = """
import io, json, sys
from contextlib import redirect_stdout
from jaxmix.converters.cli import main

found = {}
for command in sys.argv[1:]:
    with redirect_stdout(io.StringIO()) as said:
        main([command, "--help"] if command else ["--help"])
    found[command] = "\\n".join(line.rstrip() for line in said.getvalue().splitlines()).strip("\\n")
print(json.dumps(found))
"""


def help_texts() -> dict[str, str]:
    """The help of the program, under "", and of each command, as plain text."""
    names = ["", *(command.__name__ for command in COMMANDS)]
    program = [sys.executable, "-c", _HELP, *names]
    env = _environment()
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _tour(folder: Path) -> str:
    """Each run with what it said."""
    _run("jaxmix demo --copy try", folder)
    parts = []
    for line, why in RUNS:
        said = _run(line, folder).replace(f"{folder.resolve()}/", "")
        shown = f"```\n$ {line}\n{said}```\n"
        parts.append(f"{why}\n\n{shown}" if why else shown)
        if "--plot" in line:
            parts.append(f"![What the demo's adapters change]({PICTURE.name})\n")
    return "\n".join(parts)


def _run(line: str, folder: Path) -> str:
    """What a command line writes to stdout."""
    words = line.split()
    program = [sys.executable, "-m", "jaxmix"] if words[0] == "jaxmix" else words[:1]
    env = _environment()
    done = subprocess.run([*program, *words[1:]], cwd=folder, env=env, stdout=-1, text=True)
    print(f"{done.returncode} {line}", file=sys.stderr)
    return "".join(f"{row.rstrip()}\n" for row in done.stdout.splitlines())


def _save_small(picture: Path) -> None:
    """The picture with 256 colours, those of the ends of its scales too: a third of the bytes."""
    from PIL import Image

    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
        few.save(PICTURE, optimize=True)


def _helps() -> str:
    """The help of each command, under titles."""
    helps = []
    for command, text in help_texts().items():
        title = f"jaxmix {command}".rstrip()
        helps.append(f"### {title}\n\n```\n$ {title} --help\n{text}\n```\n")
    return "\n".join(helps)


def main(*, only_help: bool = False) -> None:
    """Writes the page and its picture."""
    if only_help:
        old = PAGE.read_text(encoding="utf-8")
        tour = old.partition(_TOUR)[2].partition(_HELPS)[0]
    else:
        with tempfile.TemporaryDirectory() as folder:
            tour = _tour(Path(folder))
            _save_small(Path(folder) / "inspect.png")
    made = f"<!-- Laid out by {versions()}. -->\n"
    page = TEXT.format(made=made) + _TOUR + tour + _HELPS + _helps()
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(only_help="help" in sys.argv[1:])
