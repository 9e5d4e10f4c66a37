"""Where a recipe finds its parts: below its folder, or on the hub."""

from pathlib import Path

import huggingface_hub
import pytest

import jaxmix
from jaxmix.errors import CheckpointError

from ..peft.folders import save as save_peft
from .saved import COMMIT, recipe, refused


def test_path_next_to_the_recipe_precedes_a_hub_id(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path next to the recipe takes precedence over a hub id; the working directory is unused."""
    save_peft(cache, "oft")
    save_peft(tmp_path / "cwd" / "owner" / "name", "loha")
    monkeypatch.chdir(tmp_path / "cwd")
    path = recipe(tmp_path / "r" / "mix.json", {"source": "owner/name"})
    assert jaxmix.load(path).parts[0].updates["layer.proj"].family == "OFT"
    save_peft(tmp_path / "r" / "owner" / "name")
    assert jaxmix.load(path).parts[0].updates["layer.proj"].family == "LoRA"
    recipe(path, {"source": "./owner/name"})
    (tmp_path / "r" / "owner" / "name").rename(tmp_path / "r" / "gone")
    message = refused(CheckpointError, path)
    assert message == (
        f"{path}: part 1, ./owner/name: it is neither in {path.parent} nor a hub id. Expected a "
        "path relative to mix.json, or 'owner/name'."
    )


def test_recipe_on_the_hub_names_hub_ids(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe on the hub may have hub ids as parts."""
    other = tmp_path / "hub" / "models--owner--oft"
    (other / "refs").mkdir(parents=True)
    (other / "refs" / "main").write_text(COMMIT)
    save_peft(other / "snapshots" / COMMIT, "oft")
    recipe(cache / "mix.json", {"source": "owner/oft", "strength": 0.25})
    assert jaxmix.load("owner/name").parts[0].strength == 0.25
    outer = recipe(tmp_path / "r.json", {"source": "owner/name", "strength": 0.5})
    assert jaxmix.load(outer).parts[0].strength == 0.125


def test_hub_recipe_names_paths_of_its_repository(tmp_path: Path, cache: Path) -> None:
    """Paths in a hub recipe are paths of the repository, at the recipe's commit."""
    recipe(cache / "in" / "mix.json", {"source": "lora"}, {"source": "./a/b"}, {"source": "deep"})
    recipe(cache / "in" / "deep" / "mix.json", {"source": "oft", "subfolder": "x"})
    forms = {"lora": "lora", "a/b": "loha", "deep/oft/x": "oft"}
    for inner_path, form in forms.items():
        save_peft(cache / "in" / inner_path, form)
    sources = ["lora", "./a/b", "oft/x"]
    loaded = jaxmix.load("owner/name", subfolder="in")
    assert [(part.name, part.source) for part in loaded.parts] == list(
        zip(["lora", "b", "x"], sources, strict=True)
    )
    # The client downloads single files: here they are hidden until it requests them.
    requests = []

    def download(hub_id: str, file: str, *, subfolder: str, revision: str | None) -> str:
        requests.append((hub_id, subfolder, revision))
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
        loaded = jaxmix.load("owner/name", subfolder="in", revision="main")
    assert [part.source for part in loaded.parts] == [
        f"owner/name/in/{inner_path}@{COMMIT}" for inner_path in forms
    ]
    assert {call[0] for call in requests} == {"owner/name"}
    assert {call[2] for call in requests if call[1] != "in"} == {COMMIT}


def test_links_within_the_hub_cache_are_followed(cache: Path) -> None:
    """Files of the cache are links into another folder of the same repository, and are followed."""
    inner = recipe(cache.parents[1] / "blobs" / "0123", {"source": "lora"})
    save_peft(cache / "lora")
    (cache / "inner.json").symlink_to(inner)
    recipe(cache / "mix.json", {"source": "inner.json"})
    assert len(jaxmix.load(cache).parts) == 1
    (cache / "inner.json").unlink()
    (cache / "inner.json").symlink_to(inner.rename(cache.parents[1] / "0123"))
    assert "is a link out of the recipe's folder" in refused(CheckpointError, cache)


OUT = (
    "expected a hub id, or a path below the folder of the recipe, with '/'. Move "
    "the recipe to a folder above its adapters, or mix with jaxmix.mix and "
    "jaxmix.save."
)


@pytest.mark.parametrize(
    "source",
    "/abs/lora ../lora a/../../lora a/.. .. ~/lora ~ C:/lora C:lora \\lora a\\..\\b //x/y".split(),
)
def test_paths_out_of_the_folder_are_refused(source: str, tmp_path: Path) -> None:
    """Absolute paths, parent folders, home folders and Windows paths are refused."""
    save_peft(tmp_path / "lora")
    path = recipe(tmp_path / "r" / "mix.json", {"source": source})
    message = refused(CheckpointError, path)
    assert message == f"{path}: part 1, {source}: the source is {source!r}, {OUT}"


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    """Links of a source or subfolder out of the folder are refused; links inside are followed."""
    save_peft(tmp_path / "lora")
    save_peft(tmp_path / "r" / "own")
    links = {"link": tmp_path / "lora", "within": tmp_path / "r" / "own", "nowhere": Path("no/x")}
    for name, target in links.items():
        (tmp_path / "r" / name).symlink_to(target)
    (tmp_path / "r" / "own" / "sub").symlink_to(tmp_path / "lora")
    path = tmp_path / "r" / "mix.json"
    for part in ({"source": "link"}, {"source": "own", "subfolder": "sub"}):
        message = refused(CheckpointError, recipe(path, part))
        assert message == (
            f"{path}: part 1, {part['source']}: it is a link out of the recipe's folder. Expected "
            "a path below it; copy the adapter there."
        )
    assert jaxmix.load(recipe(path, {"source": "within"})).parts[0].name == "own"
    assert "nowhere' does not exist." in refused(
        CheckpointError, recipe(path, {"source": "nowhere"})
    )
    message = refused(CheckpointError, recipe(path, {"source": "own", "subfolder": "../x"}))
    assert "subfolder '../x' is not a path inside its folder" in message
