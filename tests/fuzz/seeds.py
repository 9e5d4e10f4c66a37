"""The inputs that once showed a fault, kept in seeds.json and replayed by the tests."""

import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["add_seeds", "seeds"]

_FILE = Path(__file__).with_name("seeds.json")


def seeds() -> list[tuple[str, int]]:
    """The inputs: kinds and numbers."""
    found = json.loads(_FILE.read_text())
    return [(kind, number) for kind, numbers in found.items() for number in numbers]


def add_seeds(inputs: Iterable[tuple[str, int]]) -> None:
    """Adds inputs to the file."""
    found = json.loads(_FILE.read_text()) if _FILE.exists() else {}
    for kind, number in inputs:
        found[kind] = sorted({*found.get(kind, ()), number})
    lines = [f"  {json.dumps(kind)}: {json.dumps(found[kind])}" for kind in sorted(found)]
    _FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
