"""Runs the command line, in a process or in the test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxmix.converters import cli

__all__ = ["Captured", "main", "run", "run_json"]

Captured = pytest.CaptureFixture[str]


def run(*args: object, module: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the program in its own process, as the script or as a module."""
    script = str(Path(sys.executable).with_name("jaxmix"))
    program = [sys.executable, "-m", module] if module else [script]
    return subprocess.run([*program, *map(str, args)], capture_output=True, text=True)


def main(*args: object) -> int:
    """Runs the program in this process, which is faster."""
    return cli.main([str(arg) for arg in args])


def run_json(capsys: Captured, *args: object, code: int = 0) -> Any:
    """Returns the JSON document of a run, its whole stdout; asserts that stderr is empty."""
    assert main(*args, "--json") == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)
