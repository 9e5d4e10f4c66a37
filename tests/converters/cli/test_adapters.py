"""Adapters on the command line: paths, strengths and names."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.cli.adapters import load_each, parse_adapter

from ..bases import Adapters
from .running import Captured, main, told


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


COMMANDS = {
    "inspect": [],
    "export": ["-o", "out"],
    "convert": ["--to", "mix", "-o", "out"],
    "merge": ["-o", "out"],
    "combine": ["-m", "linear", "-o", "out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_beside_are_left_out_by_name(
    command: str,
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    """Each command that reads adapters says so, and goes on with `--ignore`."""
    monkeypatch.chdir(tmp_path)
    for name in ("value_head.bin", "mm_projector.bin"):
        (adapters["lora"] / name).write_bytes(b"")
    words: list[object] = [command]
    if command == "merge":
        words.append(base)
    words += [adapters["lora"]] if command in ("inspect", "convert") else ["-a", adapters["lora"]]
    words += COMMANDS[command]
    assert main(*words) == 1
    assert "value_head.bin: saved by torch" in capsys.readouterr().err
    assert main(*words, "--ignore", "value_head.bin") == 1
    assert main(*words, "--ignore", "value_head.bin", "--ignore", "mm_*") == 0


def test_the_file_that_is_meant(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """One name for all adapters, or one for each in their order."""
    folder = tmp_path / "styles"
    folder.mkdir()
    for i in "12":
        tensors = {
            f"proj.lora_{x}.weight": np.full(shape, int(i), np.float32)
            for x, shape in (("A", (2, 4)), ("B", (6, 2)))
        }
        save_file(tensors, folder / f"{i}.safetensors")
    assert main("inspect", folder) == 1
    assert f"{folder} has several files that may be the adapter" in capsys.readouterr().err
    for words in (
        ["--filename", "2.safetensors"],
        ["--filename", "", "--filename", "2.safetensors"],
    ):
        paths = [folder] if len(words) == 2 else [adapters["lora"], f"{folder}:0.5"]
        found = told(capsys, "inspect", *paths, *words)["adapters"]
        assert [one["name"] for one in found][-1] == "2"
    words = ["inspect", *3 * [folder], *2 * ["--filename", "2.safetensors"]]
    assert main(*words) == 2
    assert "--filename is given 2 times for 3 adapters, expected once, or once for" in (
        capsys.readouterr().err
    )


def test_a_recipe_names_files_by_itself(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """It is written without reading anything."""
    out = tmp_path / "x.json"
    assert main("convert", adapters["lora"], "--to", "recipe", "-o", out, "--ignore", "x") == 2
    assert (
        "Instead of --ignore, --filename, --subfolder and --revision, edit its parts:"
        in capsys.readouterr().err
    )
