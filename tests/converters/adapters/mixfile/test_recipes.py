"""Recipes: a file of JSON whose parts are paths or hub ids."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

import jaxmix
from jaxmix import Adapter
from jaxmix.converters.adapters import loading
from jaxmix.converters.adapters.format import Format
from jaxmix.converters.adapters.mixfile import fingerprint
from jaxmix.errors import AdapterError, CheckpointError, JaxmixError, UnsupportedError

from ..peft.folders import save as save_peft
from .same import assert_same

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def recipe(path: Path, *parts: Any, **head: Any) -> Path:
    """Writes a recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": "jaxmix", "version": 1, "parts": parts, **head}))
    return path


def refused(kind: type[JaxmixError], path: Path) -> str:
    """The text with which a recipe is refused."""
    with pytest.raises(JaxmixError) as caught:
        jaxmix.load(path)
    assert caught.type is kind
    return str(caught.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the hub's client lays it out, and no network: the place of a commit's files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return repo / "snapshots" / COMMIT


def test_five_lines(tmp_path: Path, cache: Path) -> None:
    """A folder beside the recipe and one from the hub, by order and strength."""
    save_peft(tmp_path / "lora")
    save_peft(cache, "oft")
    parts = ({"source": "lora", "strength": 0.5}, {"source": "owner/name", "revision": COMMIT})
    path = recipe(tmp_path / "mix.json", *parts)
    lora = jaxmix.load(tmp_path / "lora", strength=0.5)
    oft = jaxmix.load("owner/name", revision=COMMIT)
    for told in (tmp_path, path):
        assert_same(jaxmix.load(told), jaxmix.mix(lora, oft))
    found = jaxmix.load(recipe(tmp_path / "style.json", *parts), "mine", strength=2)
    assert [part.name for part in found.parts] == ["mine/lora", "mine/name"]
    assert [part.strength for part in found.parts] == [1.0, 2.0]
    assert [part.source for part in found.parts] == ["lora", f"owner/name@{COMMIT}"]


def test_all_fields(tmp_path: Path) -> None:
    """Name, subfolder, format and hash; and a recipe of one adapter that is an adapter."""
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


def test_the_hash_is_of_what_it_does(tmp_path: Path) -> None:
    """A PEFT folder and a saved one have the same; another strength is no other."""
    lora = jaxmix.load(save_peft(tmp_path / "lora"))
    jaxmix.save(0.5 * lora, tmp_path / "ours")
    told = {"sha256": fingerprint(lora)}
    parts = ({"source": "lora", **told}, {"source": "ours", "name": "b", "strength": 3, **told})
    found = jaxmix.load(recipe(tmp_path / "x.json", *parts))
    assert [part.strength for part in found.parts] == [1.0, 1.5]
    save_peft(tmp_path / "lora", lora_alpha=7)
    said = refused(CheckpointError, tmp_path / "x.json")
    assert said == (
        f"{tmp_path / 'x.json'}: parts whose hash (SHA-256 of their updates) differs "
        f"from the one in the file:\n  part 1, lora: "
        f"{fingerprint(jaxmix.load(tmp_path / 'lora'))}\nThey have changed since it "
        f"was written. Use the files that belong together; if the change is intended, "
        f"replace the hash by the new one."
    )


def test_recipes_in_recipes(tmp_path: Path) -> None:
    """Parts join, strengths multiply, a name is put before theirs; saved mixes too."""
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
    found = jaxmix.load(recipe(tmp_path / "mix.json", *parts))
    told = [("a/lora", 0.125), ("a/oft", 0.5), ("lora", 0.5), ("b/lora", 4.0), ("b/oft", 2.0)]
    assert [(part.name, part.strength) for part in found.parts] == told
    # A saved mix may be a part that stands in the same file as others by their sources.
    data = json.loads((tmp_path / "saved" / "mix.json").read_text())
    save_peft(tmp_path / "saved" / "more", "loha")
    data["parts"].insert(1, {"source": "more"})
    (tmp_path / "saved" / "mix.json").write_text(json.dumps(data))
    assert [p.name for p in jaxmix.load(tmp_path / "saved").parts] == ["lora", "more", "oft"]


def test_the_hash_of_a_mix(tmp_path: Path) -> None:
    """It tells the order and the strengths within."""
    lora = jaxmix.load(save_peft(tmp_path / "lora"))
    mixed = jaxmix.mix(lora, 0.5 * lora.renamed("b"))
    jaxmix.save(mixed, tmp_path / "saved")
    part = {"source": "saved", "strength": 0.1, "sha256": fingerprint(mixed)}
    assert len(jaxmix.load(recipe(tmp_path / "x.json", part)).parts) == 2
    recipe(tmp_path / "x.json", {**part, "sha256": fingerprint(0.1 * mixed)})
    assert "part 1, saved: " in refused(CheckpointError, tmp_path / "x.json")


def test_a_folder_here_is_not_mistaken_for_the_hub(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the recipe a path comes first; where the program runs does not count."""
    save_peft(cache, "oft")
    save_peft(tmp_path / "cwd" / "owner" / "name", "loha")
    monkeypatch.chdir(tmp_path / "cwd")
    path = recipe(tmp_path / "r" / "mix.json", {"source": "owner/name"})
    assert jaxmix.load(path).parts[0].updates["layer.proj"].family == "OFT"
    save_peft(tmp_path / "r" / "owner" / "name")
    assert jaxmix.load(path).parts[0].updates["layer.proj"].family == "LoRA"
    recipe(path, {"source": "./owner/name"})
    (tmp_path / "r" / "owner" / "name").rename(tmp_path / "r" / "gone")
    said = refused(CheckpointError, path)
    assert said == (
        f"{path}: part 1, ./owner/name: it is neither in {path.parent} nor a hub id. Expected a "
        "path relative to mix.json, or 'owner/name'."
    )


def test_a_recipe_on_the_hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts are hub ids too."""
    other = tmp_path / "hub" / "models--owner--oft"
    (other / "refs").mkdir(parents=True)
    (other / "refs" / "main").write_text(COMMIT)
    save_peft(other / "snapshots" / COMMIT, "oft")
    recipe(cache / "mix.json", {"source": "owner/oft", "strength": 0.25})
    assert jaxmix.load("owner/name").parts[0].strength == 0.25
    outer = recipe(tmp_path / "r.json", {"source": "owner/name", "strength": 0.5})
    assert jaxmix.load(outer).parts[0].strength == 0.125


def test_a_repository_with_a_recipe_and_its_adapters(tmp_path: Path, cache: Path) -> None:
    """Paths in it are paths in the repository, at the commit of the recipe."""
    recipe(cache / "in" / "mix.json", {"source": "lora"}, {"source": "./a/b"}, {"source": "deep"})
    recipe(cache / "in" / "deep" / "mix.json", {"source": "oft", "subfolder": "x"})
    kept = {"lora": "lora", "a/b": "loha", "deep/oft/x": "oft"}
    for inner, form in kept.items():
        save_peft(cache / "in" / inner, form)
    sources = ["lora", "./a/b", "oft/x"]
    found = jaxmix.load("owner/name", subfolder="in")
    assert [(part.name, part.source) for part in found.parts] == list(
        zip(["lora", "b", "x"], sources, strict=True)
    )
    # The client fetches files one by one: here they lie elsewhere until they are asked for.
    asked = []

    def download(hub_id: str, file: str, *, subfolder: str, revision: str | None) -> str:
        asked.append((hub_id, subfolder, revision))
        path, hidden = cache / subfolder / file, tmp_path / "hidden" / subfolder / file
        if hidden.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            hidden.rename(path)
        if not path.exists():
            raise huggingface_hub.errors.EntryNotFoundError("not there")
        return str(path)

    (tmp_path / "hidden").mkdir()
    (cache / "in").rename(tmp_path / "hidden" / "in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "hf_hub_download", download)
        found = jaxmix.load("owner/name", subfolder="in", revision="main")
    assert [part.source for part in found.parts] == [
        f"owner/name/in/{inner}@{COMMIT}" for inner in kept
    ]
    assert {one[0] for one in asked} == {"owner/name"}
    assert {one[2] for one in asked if one[1] != "in"} == {COMMIT}


def test_a_file_in_the_cache_of_the_hub(cache: Path) -> None:
    """There files are links into another folder of the same repository."""
    inner = recipe(cache.parents[1] / "blobs" / "0123", {"source": "lora"})
    save_peft(cache / "lora")
    (cache / "inner.json").symlink_to(inner)
    recipe(cache / "mix.json", {"source": "inner.json"})
    assert len(jaxmix.load(cache).parts) == 1
    (cache / "inner.json").unlink()
    (cache / "inner.json").symlink_to(inner.rename(cache.parents[1] / "0123"))
    assert "is a link out of the recipe's folder" in refused(CheckpointError, cache)


def test_options_of_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a part stand in the recipe; a base is given to `load`, for whoever takes it."""
    told: list[Any] = []

    def read(path: Path, name: str, strength: Any, **options: Any) -> Adapter:
        told.append(options)
        return Adapter({}, strength, name)

    def is_mine(path: Path) -> bool:
        return path.suffix in (".mine", ".bare")

    one = Format("mine", "mine", is_mine, read, options=("base", "part"))
    bare = Format("bare", "bare", lambda path: path.suffix == ".bare", read)
    monkeypatch.setattr(loading, "FORMATS", (bare, one, *loading.FORMATS))
    for file in ("a.mine", "b.bare"):
        (tmp_path / file).write_bytes(b"")
    parts = ({"source": "a.mine", "options": {"part": "unet"}}, {"source": "b.bare"})
    path = recipe(tmp_path / "in" / "x.json")
    inner = recipe(tmp_path / "mix.json", *parts)
    jaxmix.load(inner)
    outer = recipe(tmp_path / "outer.json", {"source": "mix.json"})
    jaxmix.load(outer, base="model")
    assert told == [{"part": "unet"}, {}, {"part": "unet", "base": "model"}, {}]
    recipe(path, {"source": "x", "options": {"base": "/model"}}, {"source": "x", "options": [1]})
    said = refused(CheckpointError, path)
    what = "expected an object of numbers, strings, true and false; give a base to jaxmix.load"
    assert f"part 1: options is {{'base': '/model'}}, {what}(…, base=…)" in said
    assert f"part 2: options is [1], {what}(…, base=…)" in said
    recipe(outer, {"source": "mix.json", "options": {"part": "unet"}})
    said = refused(UnsupportedError, outer)
    assert "mix.json has the format 'mix', whose reader takes base, ignore; found part." in said
    # Found by a mutation: options with the names of `LocatedAdapter.read`'s own arguments.
    names = {"name": "x", "strength": 2, "self": 1, "path": "y", "above": 1}
    recipe(outer, {"source": "b.bare", "options": names})
    said = refused(UnsupportedError, outer)
    assert "takes no options; found above, name, path, self, strength." in said


# --------------------------------------------------------------------------------- refused

OUT = (
    "expected a hub id, or a path below the folder of the recipe, with '/'. Move "
    "the recipe to a folder above its adapters, or mix with jaxmix.mix and "
    "jaxmix.save."
)


@pytest.mark.parametrize(
    "source",
    "/abs/lora ../lora a/../../lora a/.. .. ~/lora ~ C:/lora C:lora \\lora a\\..\\b //x/y".split(),
)
def test_paths_that_lead_out(source: str, tmp_path: Path) -> None:
    """Absolute, climbing, of a home, of Windows."""
    save_peft(tmp_path / "lora")
    path = recipe(tmp_path / "r" / "mix.json", {"source": source})
    said = refused(CheckpointError, path)
    assert said == f"{path}: part 1, {source}: the source is {source!r}, {OUT}"


def test_links_that_lead_out(tmp_path: Path) -> None:
    """By the source, by its subfolder; a link within is none."""
    save_peft(tmp_path / "lora")
    save_peft(tmp_path / "r" / "own")
    links = {"link": tmp_path / "lora", "within": tmp_path / "r" / "own", "nowhere": Path("no/x")}
    for name, target in links.items():
        (tmp_path / "r" / name).symlink_to(target)
    (tmp_path / "r" / "own" / "sub").symlink_to(tmp_path / "lora")
    path = tmp_path / "r" / "mix.json"
    for part in ({"source": "link"}, {"source": "own", "subfolder": "sub"}):
        said = refused(CheckpointError, recipe(path, part))
        assert said == (
            f"{path}: part 1, {part['source']}: it is a link out of the recipe's folder. Expected "
            "a path below it; copy the adapter there."
        )
    assert jaxmix.load(recipe(path, {"source": "within"})).parts[0].name == "own"
    assert "is neither a folder nor a hub id" in refused(
        CheckpointError, recipe(path, {"source": "nowhere"})
    )
    said = refused(CheckpointError, recipe(path, {"source": "own", "subfolder": "../x"}))
    assert "subfolder '../x' is not a path inside its folder" in said


def test_recipes_that_go_round(tmp_path: Path) -> None:
    """Asking for itself, directly and by way of another, through a link too."""
    path = recipe(tmp_path / "mix.json", {"source": "."})
    said = refused(CheckpointError, path)
    assert said.endswith(
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


def test_recipes_too_deep(tmp_path: Path) -> None:
    """Before Python's own stack is at its end."""
    for i in range(40):
        recipe(tmp_path / f"{i}.json", {"source": f"{i + 1}.json"})
    said = refused(CheckpointError, tmp_path / "0.json")
    assert said.endswith(
        f"{tmp_path / '16.json'} is nested 16 recipes deep, expected at most 16. Save the inner "
        f"recipes with jaxmix.save."
    )
    save_peft(tmp_path / "lora")
    recipe(tmp_path / "15.json", {"source": "lora"})
    assert len(jaxmix.load(tmp_path / "0.json").parts) == 1


def test_what_is_wrong_with_a_part_is_said_with_its_place(tmp_path: Path, cache: Path) -> None:
    """The file, which part, its source, and what its reader says, in the reader's own kind."""
    save_peft(tmp_path / "lora", peft_type="NONSENSE")
    path = recipe(tmp_path / "mix.json", {"source": "lora"})
    with pytest.raises(JaxmixError) as own:
        jaxmix.load(tmp_path / "lora")
    assert refused(own.type, path) == f"{path}: part 1, lora: {own.value}"
    said = refused(CheckpointError, recipe(path, {"source": "owner/none"}))
    assert said.startswith(
        f"{path}: part 1, owner/none: owner/none on the hub: adapter_config.json"
    )
    save_peft(tmp_path / "lora")
    said = refused(CheckpointError, recipe(path, {"source": "lora", "revision": "main"}))
    assert said == f"{path}: part 1, lora: it is a folder on this machine, which has no revision"


def test_two_of_one_name(tmp_path: Path) -> None:
    """And what to write."""
    save_peft(tmp_path / "lora")
    path = recipe(tmp_path / "mix.json", {"source": "lora"}, {"source": "lora"})
    said = refused(AdapterError, path)
    assert said.startswith(f"{path}: two adapters of a mix have the name 'lora'. ")
    assert said.endswith(' In a recipe: "name": "other".')


def test_an_adapter_that_is_several(tmp_path: Path) -> None:
    """`kind` is held to."""
    save_peft(tmp_path / "lora")
    part = {"source": "lora"}
    path = recipe(tmp_path / "mix.json", part, {**part, "name": "b"}, kind="adapter")
    assert refused(CheckpointError, path) == (
        f"{path}: kind is 'adapter', but there are 2 adapters, expected 1. Write "
        f"'mix', or leave kind out."
    )


def test_a_recipe_beside_other_tensors(tmp_path: Path) -> None:
    """What lies beside mix.json is its own; beside a recipe of another name lies anything."""
    save_peft(tmp_path / "lora")
    path = recipe(tmp_path / "style.json", {"source": "lora"})
    (tmp_path / "style.safetensors").write_bytes(b"something else")
    assert len(jaxmix.load(path).parts) == 1
    path = recipe(tmp_path / "mix.json", {"source": "lora"})
    (tmp_path / "mix.safetensors").write_bytes(b"something else")
    said = refused(CheckpointError, path)
    assert said.startswith(f"{tmp_path / 'mix.safetensors'} is not a complete safetensors file: ")
