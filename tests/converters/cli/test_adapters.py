"""Adapters on the command line: paths, strengths and names."""

from pathlib import Path

import pytest

from jaxmix.converters.cli.adapters import load_each, parse_adapter

from ..checkpoints import Adapters


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("lora", "lora", 1.0),
        ("lora:0.5", "lora", 0.5),
        ("lora:-1", "lora", -1.0),
        ("lora:+.5", "lora", 0.5),
        ("lora:1e-3", "lora", 0.001),
        ("owner/name:2", "owner/name", 2.0),
        ("owner/name:2.", "owner/name", 2.0),
        ("run:2:1", "run:2", 1.0),
        (r"C:\lora", r"C:\lora", 1.0),
        (r"C:\lora:0.6", r"C:\lora", 0.6),
        ("a:b", "a:b", 1.0),
        ("a:nan", "a:nan", 1.0),
        ("a:inf", "a:inf", 1.0),
        ("a:1_0", "a:1_0", 1.0),
        ("a:", "a:", 1.0),
        (":2", ":2", 1.0),
    ],
)
def test_strengths(text: str, path: str, strength: float) -> None:
    """A number after the last colon; nothing else."""
    assert parse_adapter(text) == (path, strength)


def test_names_are_made_unique(adapters: Adapters, tmp_path: Path) -> None:
    """Folders of one name, and one whose name is what another would get."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "lora").symlink_to(adapters["loha"])
    (tmp_path / "lora-2").symlink_to(adapters["oft"])
    paths = (adapters["lora"], tmp_path / "lora-2", adapters["lora"], adapters["lora"])
    found = [part.name for _, parts in load_each([str(path) for path in paths]) for part in parts]
    assert found == ["lora", "oft", "lora-2", "lora-3"]
