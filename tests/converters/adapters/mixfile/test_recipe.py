"""Writing recipes."""

import json
from pathlib import Path

import pytest

import jaxmix
from jaxmix.converters.adapters.mixfile.recipe import save_recipe
from jaxmix.errors import CheckpointError

from ....messages import full_text
from .saved import LORA


def test_recipe_is_read_back_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the working directory become paths from the recipe; a hub id's form is marked."""
    for name in ("a", "owner/name"):
        jaxmix.save(jaxmix.Adapter({"x": LORA}, name=name), tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    sources = [("in/a", 0.5), (str(tmp_path / "in" / "owner" / "name"), -2.0), ("owner/hub", 1.0)]
    file = save_recipe(sources, tmp_path / "in" / "mix.json")
    assert json.loads(file.read_text())["parts"] == [
        {"source": "a", "strength": 0.5},
        {"source": "./owner/name", "strength": -2.0},
        {"source": "owner/hub", "strength": 1.0},
    ]
    save_recipe(sources[:2], file, force=True)
    (tmp_path / "in").rename(tmp_path / "moved")
    loaded = jaxmix.load(tmp_path / "moved" / "mix.json")
    assert [(part.name, part.strength) for part in loaded.parts] == [
        ("a", 0.5),
        ("owner/name", -2.0),
    ]


def test_parts_outside_of_the_folder_are_listed(tmp_path: Path) -> None:
    """A link inside that leads out counts as outside, and nothing is written."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    sources = [str(outside), str(folder / "link")]
    message = full_text(
        f"parts outside of {folder}, the folder of the recipe:\n  {outside}\n  {folder}/link\n"
        "Expected paths in it or below, so the folder can be moved. Write the recipe elsewhere, or "
        "save the mix with its arrays: jaxmix.save."
    )
    with pytest.raises(CheckpointError, match=message):
        save_recipe([(source, 1.0) for source in sources], folder / "mix.json")
    assert not (folder / "mix.json").exists()


@pytest.mark.parametrize(
    ("name", "force", "message"),
    [
        ("x.txt", True, "is not a valid name for a recipe, expected one that ends in .json."),
        ("old.json", False, "exists. Choose another name, or replace it: force=True."),
        (
            "config.json",
            True,
            "is not replaced, since it is not a recipe. Choose another name, or move it.",
        ),
    ],
)
def test_other_files_are_not_replaced(name: str, force: bool, message: str, tmp_path: Path) -> None:
    """Only a recipe is replaced, with `force`."""
    save_recipe([], tmp_path / "old.json")
    (tmp_path / "config.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=full_text(f"{tmp_path / name} {message}")):
        save_recipe([("owner/name", 1.0)], tmp_path / name, force=force)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
