"""Adapters are found by path, subfolder and file; sources hide private paths."""

import huggingface_hub
import pytest

import jaxmix
from jaxmix.converters.adapters import loading
from jaxmix.converters.adapters.format import Format
from jaxmix.converters.adapters.loading import FORMATS
from jaxmix.errors import CheckpointError, UnsupportedError

from .peft.folders import SITE, refused, save

FILES = ("adapter_config.json", "adapter_model.safetensors")


def test_paths_of_every_kind(tmp_path, monkeypatch):
    """A string, a Path, a relative path, the home folder, a trailing slash, a link."""
    save(tmp_path / "style")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "style")
    for path in (tmp_path / "style", str(tmp_path / "style"), "style", "style/", "~/style", "link"):
        assert jaxmix.load(path).name == "style"
    monkeypatch.chdir(tmp_path / "style")
    assert jaxmix.load(".").name == "style"
    assert jaxmix.load(".", "other").name == "other"
    assert jaxmix.load(".", strength=0.25).strength == 0.25


def test_folder_takes_precedence(tmp_path, monkeypatch):
    """A string that looks like an id is read as a folder if there is one."""
    save(tmp_path / "owner" / "style")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    assert jaxmix.load("owner/style").name == "style"


def test_file_of_a_folder(tmp_path):
    """The tensors stand for their folder, whose config is read; other files do not."""
    path = save(tmp_path / "style") / FILES[1]
    adapter = jaxmix.load(path)
    assert (adapter.name, adapter.source) == ("style", "style")
    assert adapter.updates[SITE].scale == jaxmix.load(tmp_path / "style").updates[SITE].scale
    message = refused(CheckpointError, path.with_name(FILES[0]))
    assert message.endswith(". Pass the folder that contains it.")
    assert all(reader.description in message for reader in FORMATS)


EXPECTED = (
    "Expected a folder with adapter_config.json and adapter_model.safetensors, or the id of a "
    "repository on the hub, 'owner/name'."
)


@pytest.mark.parametrize("path", ["no/such/folder", "nothing", "/no/such", "a b/c", "é/x"])
def test_neither_folder_nor_id(path):
    """An id has one slash and plain characters."""
    message = refused(CheckpointError, path)
    assert message == f"{path!r} does not exist.\n{EXPECTED}"


def test_subfolders(tmp_path):
    """They name the adapter, and stay within the folder."""
    save(tmp_path / "repo" / "a" / "b")
    assert jaxmix.load(tmp_path / "repo", subfolder="a/b").name == "b"
    assert jaxmix.load(tmp_path / "repo" / "a" / "b", subfolder=None).name == "b"
    for out in ("..", "../repo", "a/../../x", str(tmp_path), "a\\b", "", "."):
        assert refused(CheckpointError, tmp_path / "repo", subfolder=out) == (
            f"subfolder {out!r} is not a path inside its folder, expected one such as "
            f"'checkpoint-100'. Pass the folder itself as the first argument."
        )
    message = refused(CheckpointError, tmp_path / "repo", subfolder="c")
    assert f"{tmp_path / 'repo' / 'c'} has no adapter_config.json; found no such folder" in message


def test_linked_subfolder(tmp_path):
    """Links are allowed: the hub's cache consists of them."""
    save(tmp_path / "elsewhere")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "link").symlink_to(tmp_path / "elsewhere")
    assert jaxmix.load(tmp_path / "repo", subfolder="link").name == "elsewhere"


def test_source_hides_private_paths(tmp_path, monkeypatch):
    """The source is the path as given; for a private path only its last part."""
    save(tmp_path / "a" / "style")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"a/style": "a/style", "a/style/": "a/style", "~/a/style": "style", "./a": "a"}
    names |= {str(tmp_path / "a" / "style"): "style", "a/../a/style": "a/../a/style"}
    for text, source in names.items():
        subfolder = "style" if text == "./a" else None
        loaded = jaxmix.load(text, subfolder=subfolder, strength=0.5)
        assert loaded.source == source + ("/style" if subfolder else "")
        assert loaded.renamed("other").source == (2 * loaded).source == loaded.source


def test_format_of_single_files(monkeypatch):
    """A repository has no file name to look for, so the user must download the file."""
    reader = Format("mine", "a file .mine", lambda path: False, lambda path, name, strength: None)
    monkeypatch.setattr(loading, "FORMATS", (reader, *loading.FORMATS))
    assert refused(UnsupportedError, "owner/name", format="mine") == (
        "owner/name: adapters of the format 'mine' are single files, which are not "
        "looked for on the hub. Download the file with `hf download owner/name`, and "
        "pass its path."
    )
