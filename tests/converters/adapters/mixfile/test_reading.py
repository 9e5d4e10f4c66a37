"""Reads saved mixes and recipes, whose parts are paths or hub ids."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, JaxmixError
from jaxmix.converters.adapters import loading
from jaxmix.converters.adapters.format import Format
from jaxmix.converters.adapters.mixfile import fingerprint
from jaxmix.errors import AdapterError, CheckpointError, UnsupportedError

from ..peft.folders import packed
from ..peft.folders import save as save_peft
from .same import assert_same
from .saved import COMMIT, MIXED, A, B, edited, first, recipe, refused, tensors


def test_recipe_mixes_a_folder_and_a_hub_id(tmp_path: Path, cache: Path) -> None:
    """A folder next to the recipe and a hub id are mixed in order, at their strengths."""
    save_peft(tmp_path / "lora")
    save_peft(cache, "oft")
    parts = ({"source": "lora", "strength": 0.5}, {"source": "owner/name", "revision": COMMIT})
    path = recipe(tmp_path / "mix.json", *parts)
    lora = jaxmix.load(tmp_path / "lora", strength=0.5)
    oft = jaxmix.load("owner/name", revision=COMMIT)
    for location in (tmp_path, path):
        assert_same(jaxmix.load(location), jaxmix.mix(lora, oft))
    loaded = jaxmix.load(recipe(tmp_path / "style.json", *parts), "mine", strength=2)
    assert [part.name for part in loaded.parts] == ["mine/lora", "mine/name"]
    assert [part.strength for part in loaded.parts] == [1.0, 2.0]
    assert [part.source for part in loaded.parts] == ["lora", f"owner/name@{COMMIT}"]


def test_all_fields_of_a_part(tmp_path: Path) -> None:
    """Name, subfolder, format and hash are used; `kind` makes a recipe of one part an adapter."""
    lora = jaxmix.load(save_peft(tmp_path / "a" / "lora"), "style")
    part = {
        "source": "./a",
        "name": "style",
        "subfolder": "lora",
        "format": "peft",
        "sha256": fingerprint(lora),
        "strength": 2,
    }
    path = recipe(tmp_path / "x.json", part, kind="adapter")
    assert_same(jaxmix.load(path), replace(lora, strength=2.0, source="./a/lora"))


def test_hash_covers_the_updates_only(tmp_path: Path) -> None:
    """A PEFT folder and its saved copy have the same hash, at any strength."""
    lora = jaxmix.load(save_peft(tmp_path / "lora"))
    jaxmix.save(0.5 * lora, tmp_path / "ours")
    digest = {"sha256": fingerprint(lora)}
    parts = ({"source": "lora", **digest}, {"source": "ours", "name": "b", "strength": 3, **digest})
    loaded = jaxmix.load(recipe(tmp_path / "x.json", *parts))
    assert [part.strength for part in loaded.parts] == [1.0, 1.5]
    save_peft(tmp_path / "lora", lora_alpha=7)
    message = refused(CheckpointError, tmp_path / "x.json")
    assert message == (
        f"{tmp_path / 'x.json'}: parts whose hash (SHA-256 of their updates) differs "
        f"from the one in the file:\n  part 1, lora: "
        f"{fingerprint(jaxmix.load(tmp_path / 'lora'))}\nThey have changed since it "
        f"was written. Use the files that belong together; if the change is intended, "
        f"replace the hash by the new one."
    )


def test_recipes_nest(tmp_path: Path) -> None:
    """Nested parts are joined, strengths multiplied and names prefixed; saved mixes too."""
    lora = jaxmix.load(save_peft(tmp_path / "in" / "deep" / "lora"))
    oft = jaxmix.load(save_peft(tmp_path / "in" / "oft", "oft"))
    recipe(tmp_path / "in" / "deep" / "mix.json", {"source": "lora", "strength": 0.5})
    inner = ({"source": "deep", "strength": 0.5}, {"source": "oft"})
    recipe(tmp_path / "in" / "mix.json", *inner)
    jaxmix.save(jaxmix.mix(lora, 0.5 * oft), tmp_path / "saved")
    parts = (
        {"source": "in", "strength": 0.5, "name": "a"},
        {"source": "in/deep/mix.json"},
        {"source": "saved", "strength": 4, "name": "b"},
    )
    loaded = jaxmix.load(recipe(tmp_path / "mix.json", *parts))
    expected = [("a/lora", 0.125), ("a/oft", 0.5), ("lora", 0.5), ("b/lora", 4.0), ("b/oft", 2.0)]
    assert [(part.name, part.strength) for part in loaded.parts] == expected
    # A saved mix may also contain parts that are given by their sources.
    data = json.loads((tmp_path / "saved" / "mix.json").read_text())
    save_peft(tmp_path / "saved" / "more", "loha")
    data["parts"].insert(1, {"source": "more"})
    (tmp_path / "saved" / "mix.json").write_text(json.dumps(data))
    assert [p.name for p in jaxmix.load(tmp_path / "saved").parts] == ["lora", "more", "oft"]


def test_hash_of_a_mix_covers_order_and_strengths(tmp_path: Path) -> None:
    """A mix's hash covers the order and strengths of its parts."""
    lora = jaxmix.load(save_peft(tmp_path / "lora"))
    mixed = jaxmix.mix(lora, 0.5 * lora.renamed("b"))
    jaxmix.save(mixed, tmp_path / "saved")
    part = {"source": "saved", "strength": 0.1, "sha256": fingerprint(mixed)}
    assert len(jaxmix.load(recipe(tmp_path / "x.json", part)).parts) == 2
    recipe(tmp_path / "x.json", {**part, "sha256": fingerprint(0.1 * mixed)})
    assert "part 1, saved: " in refused(CheckpointError, tmp_path / "x.json")


def test_options_of_parts_reach_their_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part's options are in the recipe; `base` is passed to `load` for readers that use it."""
    calls: list[Any] = []

    def read(path: Path, name: str, strength: Any, **options: Any) -> Adapter:
        calls.append(options)
        return Adapter({}, strength, name)

    def is_mine(path: Path) -> bool:
        return path.suffix in (".mine", ".bare")

    new_format = Format("mine", "mine", is_mine, read, options=("base", "part"))
    bare = Format("bare", "bare", lambda path: path.suffix == ".bare", read)
    monkeypatch.setattr(loading, "FORMATS", (bare, new_format, *loading.FORMATS))
    for file in ("a.mine", "b.bare"):
        (tmp_path / file).write_bytes(b"")
    parts = ({"source": "a.mine", "options": {"part": "unet"}}, {"source": "b.bare"})
    path = recipe(tmp_path / "in" / "x.json")
    inner_recipe = recipe(tmp_path / "mix.json", *parts)
    jaxmix.load(inner_recipe)
    outer = recipe(tmp_path / "outer.json", {"source": "mix.json"})
    jaxmix.load(outer, base="model")
    assert calls == [{"part": "unet"}, {}, {"part": "unet", "base": "model"}, {}]
    recipe(path, {"source": "x", "options": {"base": "/model"}}, {"source": "x", "options": [1]})
    message = refused(CheckpointError, path)
    ending = "expected an object of numbers, strings, true and false; pass a base with jaxmix.load"
    assert f"part 1: options is {{'base': '/model'}}, {ending}(…, base=…)" in message
    assert f"part 2: options is [1], {ending}(…, base=…)" in message
    recipe(outer, {"source": "mix.json", "options": {"part": "unet"}})
    message = refused(UnsupportedError, outer)
    text = "mix.json has the format 'mix', whose reader takes base, ignore, not part=…. Leave it "
    assert text in message
    # Found by a mutation: options with the names of `LocatedAdapter.read`'s own arguments.
    names = {"name": "x", "strength": 2, "self": 1, "path": "y", "above": 1}
    recipe(outer, {"source": "b.bare", "options": names})
    message = refused(UnsupportedError, outer)
    assert (
        "takes no options, not above=…, name=…, path=…, self=…, strength=…. Leave it out, or"
        in message
    )


def test_circular_recipes_are_refused(tmp_path: Path) -> None:
    """A recipe that includes itself, directly, through another recipe or a link, is refused."""
    path = recipe(tmp_path / "mix.json", {"source": "."})
    message = refused(CheckpointError, path)
    assert message.endswith(
        f"{path} contains itself, through 1 recipe. Expected parts that are adapters, "
        f"or recipes of others; remove the part that leads back to {tmp_path.name}."
    )
    recipe(path, {"source": "a"})
    recipe(tmp_path / "a" / "mix.json", {"source": "b.json"})
    os.symlink(path, tmp_path / "a" / "b.json")
    assert "is a link out of the recipe's folder" in refused(CheckpointError, path)
    recipe(tmp_path / "a.json", {"source": "b.json"})
    recipe(tmp_path / "b.json", {"source": "a.json"})
    assert "a.json contains itself, through 2 recipes." in refused(
        CheckpointError, tmp_path / "a.json"
    )


def test_recipes_nest_at_most_16_deep(tmp_path: Path) -> None:
    """Deep nesting is refused before Python's recursion limit."""
    for i in range(40):
        recipe(tmp_path / f"{i}.json", {"source": f"{i + 1}.json"})
    message = refused(CheckpointError, tmp_path / "0.json")
    assert message.endswith(
        f"{tmp_path / '16.json'} is nested 16 recipes deep, expected at most 16. Save the inner "
        f"recipes with jaxmix.save."
    )
    save_peft(tmp_path / "lora")
    recipe(tmp_path / "15.json", {"source": "lora"})
    assert len(jaxmix.load(tmp_path / "0.json").parts) == 1


def test_error_of_a_part_names_file_part_and_source(tmp_path: Path, cache: Path) -> None:
    """The error names the file, part and source, and keeps the reader's message and class."""
    save_peft(tmp_path / "lora", peft_type="NONSENSE")
    path = recipe(tmp_path / "mix.json", {"source": "lora"})
    with pytest.raises(JaxmixError) as part_error:
        jaxmix.load(tmp_path / "lora")
    assert refused(part_error.type, path) == f"{path}: part 1, lora: {part_error.value}"
    message = refused(CheckpointError, recipe(path, {"source": "owner/none"}))
    assert message.startswith(
        f"{path}: part 1, owner/none: owner/none on the hub: adapter_config.json"
    )
    save_peft(tmp_path / "lora")
    message = refused(CheckpointError, recipe(path, {"source": "lora", "revision": "main"}))
    assert message == f"{path}: part 1, lora: it is a folder on this machine, which has no revision"


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    """The error shows how to rename a part."""
    save_peft(tmp_path / "lora")
    path = recipe(tmp_path / "mix.json", {"source": "lora"}, {"source": "lora"})
    message = refused(AdapterError, path)
    assert message.startswith(f"{path}: two adapters of a mix have the name 'lora'. ")
    assert message.endswith(' In a recipe: "name": "other".')


def test_kind_adapter_with_two_parts_is_refused(tmp_path: Path) -> None:
    """A recipe of kind 'adapter' must have one part."""
    save_peft(tmp_path / "lora")
    part = {"source": "lora"}
    path = recipe(tmp_path / "mix.json", part, {**part, "name": "b"}, kind="adapter")
    assert refused(CheckpointError, path) == (
        f"{path}: kind is 'adapter', but there are 2 adapters, expected 1. Write "
        f"'mix', or leave kind out."
    )


def test_mix_safetensors_belongs_to_mix_json(tmp_path: Path) -> None:
    """A recipe named mix.json reads mix.safetensors next to it; recipes of other names do not."""
    save_peft(tmp_path / "lora")
    path = recipe(tmp_path / "style.json", {"source": "lora"})
    (tmp_path / "style.safetensors").write_bytes(b"something else")
    assert len(jaxmix.load(path).parts) == 1
    path = recipe(tmp_path / "mix.json", {"source": "lora"})
    (tmp_path / "mix.safetensors").write_bytes(b"something else")
    message = refused(CheckpointError, path)
    assert message.startswith(
        f"{tmp_path / 'mix.safetensors'} is not a complete safetensors file: "
    )


def test_missing_tensors_file_is_refused(folder: Path) -> None:
    """The tensors file is required next to mix.json."""
    (folder / "mix.safetensors").unlink()
    assert refused(CheckpointError, folder) == (
        f"{folder} has no mix.safetensors, expected next to mix.json, whose parts "
        f"have their arrays in it. Copy, download or save it again."
    )


def test_unused_tensors_are_listed(folder: Path) -> None:
    """Tensors that no part uses are listed."""
    path = folder / "mix.safetensors"
    path.write_bytes(packed({**tensors(folder), "zz": A, "0/more": B}))
    assert refused(CheckpointError, folder) == (
        f"{path} has tensors that no part uses:\n  0/more\n  zz\nExpected only the "
        f"tensors of mix.json. Save the mix again."
    )


def test_changed_tensors_are_refused(folder: Path) -> None:
    """A changed value, shape or dtype fails the hash; other axes make the update invalid."""
    path, stored = folder / "mix.safetensors", tensors(folder)
    changes = {
        "value": A + 1,
        "sign of zero": np.where(A == 0, -A, A),
        "shape": A.reshape(4, 2),
        "dtype": A.astype(np.float64),
        "bits": A.astype(ml_dtypes.bfloat16),
    }
    for changed in changes.values():
        path.write_bytes(packed({**stored, "0/a/a": changed}))
        message = refused(CheckpointError, folder)
        assert message.startswith(
            f"{folder / 'mix.json'}: parts whose hash (SHA-256 of their updates) "
            f"differs from the one in the file:\n  part 1, x: "
        )
        assert "\n  part 2, y: " in message and message.endswith(" by the new one.")
    for changed, description in (
        (A[None], "(1, 2, 4) of float32"),
        (A.astype(np.int32), "(2, 4) of int32"),
    ):
        path.write_bytes(packed({**stored, "0/a/a": changed}))
        line = f"\n  a: a is an array {description}, expected an array (r, in) of Float\n"
        assert line in refused(CheckpointError, folder)


def test_wrong_hash_names_the_part(folder: Path) -> None:
    """A wrong hash, or a changed field, is reported for that part only."""
    edited(folder, lambda data: data["parts"][1].update(sha256="0" * 64))
    message = refused(CheckpointError, folder)
    assert "\n  part 2, y: " in message and "part 1" not in message
    jaxmix.save(MIXED, folder, force=True)
    edited(folder, lambda data: first(data).update(scale=0.25))
    message = refused(CheckpointError, folder)
    assert "\n  part 1, x: " in message and "part 2" not in message
