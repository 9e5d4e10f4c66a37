"""What the program prints: JSON documents, progress, and messages about choices."""

import json
import logging
from pathlib import Path

import pytest
import typer

from jaxmix.converters.cli.console import (
    choice_of,
    count,
    print_error,
    print_json,
    show_hub_requests,
)

from ...messages import full_text
from .running import Captured


def test_json_of_nan_and_paths(capsys: Captured) -> None:
    """NaN and infinity become null; a path becomes a string."""
    print_json({"a": [float("nan"), 1.0], "b": {Path("x"): (Path("y"), float("inf"))}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": {"x": ["y", None]}}


def test_error_is_a_line_or_a_document(capsys: Captured) -> None:
    """A name is neither markup nor a command to the terminal; lines are kept."""
    print_error("[red]a\x1b[2J\nb", "CheckpointError", as_json=False)
    assert capsys.readouterr() == ("", "error: [red]a\\x1b[2J\nb\n")
    print_error("[red]a", "CheckpointError", as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": "[red]a", "kind": "CheckpointError"}
    assert captured.err == ""


def test_nouns_are_counted() -> None:
    assert [count(n, "site") for n in (0, 1, 1234)] == ["0 sites", "1 site", "1,234 sites"]


def test_unknown_choice_suggests_the_nearest() -> None:
    """None if nothing is near; an option that is not given passes."""
    check = choice_of(("ties", "dare_ties", "slerp"))["callback"]
    assert check(None) is None and check("ties") == "ties"
    names = "is not one of ties, dare_ties, slerp."
    for value, message in (("tie", f"'tie' {names} Did you mean ties?"), ("x", f"'x' {names}")):
        with pytest.raises(typer.BadParameter, match=full_text(message)):
            check(value)


def test_requests_are_shown_while_a_command_runs(capsys: Captured) -> None:
    """Not with --json; afterwards the logger is as before, whatever happened."""
    log = logging.getLogger("jaxmix.hub")
    before = log.level, list(log.handlers)
    with pytest.raises(KeyError), show_hub_requests(as_json=False):
        log.info("requesting %s", "a\x1b[red]")
        raise KeyError
    with show_hub_requests(as_json=True):
        log.info("requesting b")
    assert capsys.readouterr() == ("", "requesting a\\x1b[red] …\n")
    assert (log.level, list(log.handlers)) == before
