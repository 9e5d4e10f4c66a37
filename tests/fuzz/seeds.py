"""The inputs that once revealed a fault, stored in seeds.json and replayed by the tests."""

import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["add_seeds", "seeds"]

_FILE = Path(__file__).with_name("seeds.json")


def seeds() -> list[tuple[str, int]]:
    """Returns the inputs: kinds and numbers."""
    by_kind = json.loads(_FILE.read_text())
    return [(kind, number) for kind, numbers in by_kind.items() for number in numbers]


def add_seeds(inputs: Iterable[tuple[str, int]]) -> None:
    """Adds inputs to the file."""
    by_kind = json.loads(_FILE.read_text()) if _FILE.exists() else {}
    for kind, number in inputs:
        by_kind[kind] = sorted({*by_kind.get(kind, ()), number})
    lines = [f"  {json.dumps(kind)}: {json.dumps(by_kind[kind])}" for kind in sorted(by_kind)]
    _FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
