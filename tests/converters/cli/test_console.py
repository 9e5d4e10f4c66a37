"""What the program prints: JSON documents, progress, and messages about choices."""

import json
from pathlib import Path

from jaxmix.converters.cli.console import print_json

from .running import Captured


def test_json_of_nan_and_paths(capsys: Captured) -> None:
    """NaN and infinity become null; a path becomes a string."""
    print_json({"a": [float("nan"), 1.0], "b": {Path("x"): (Path("y"), float("inf"))}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": {"x": ["y", None]}}
