"""Adapters on the command line: paths, strengths and names."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.cli.adapters import load_each, parse_adapter

from ..bases import Adapters
from .running import Captured, main, run_json


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
def test_number_after_the_last_colon_is_the_strength(text: str, path: str, strength: float) -> None:
    """A number after the last colon is the strength; anything else belongs to the path."""
    assert parse_adapter(text) == (path, strength)


def test_names_get_unique_suffixes(adapters: Adapters, tmp_path: Path) -> None:
    """Folders of one name get distinct suffixes, also if a folder already has the suffixed name."""
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
def test_ignore_skips_other_weight_files(
    command: str,
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    """Every command that reads adapters rejects other weight files and skips them by `--ignore`."""
    monkeypatch.chdir(tmp_path)
    for name in ("value_head.bin", "mm_projector.bin"):
        (adapters["lora"] / name).write_bytes(b"")
    args: list[object] = [command]
    if command == "merge":
        args.append(base)
    args += [adapters["lora"]] if command in ("inspect", "convert") else ["-a", adapters["lora"]]
    args += COMMANDS[command]
    assert main(*args) == 1
    assert "value_head.bin: saved by torch" in capsys.readouterr().err
    assert main(*args, "--ignore", "value_head.bin") == 1
    assert main(*args, "--ignore", "value_head.bin", "--ignore", "mm_*") == 0


def test_filename_chooses_the_file(adapters: Adapters, tmp_path: Path, capsys: Captured) -> None:
    """`--filename` is given once for all adapters, or once per adapter in order."""
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
    for args in (
        ["--filename", "2.safetensors"],
        ["--filename", "", "--filename", "2.safetensors"],
    ):
        paths = [folder] if len(args) == 2 else [adapters["lora"], f"{folder}:0.5"]
        found = run_json(capsys, "inspect", *paths, *args)["adapters"]
        assert [record["name"] for record in found][-1] == "2"
    args = ["inspect", *3 * [folder], *2 * ["--filename", "2.safetensors"]]
    assert main(*args) == 2
    assert "--filename is given 2 times for 3 adapters, expected once, or once for" in (
        capsys.readouterr().err
    )


def test_recipe_rejects_reader_options(
    adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """A recipe is written without reading the adapters, so reader options go into its parts."""
    out = tmp_path / "x.json"
    assert main("convert", adapters["lora"], "--to", "recipe", "-o", out, "--ignore", "x") == 2
    assert (
        "Instead of --ignore, --filename, --subfolder and --revision, edit its parts:"
        in capsys.readouterr().err
    )
