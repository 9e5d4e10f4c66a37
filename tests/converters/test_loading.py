"""`load`: paths, subfolders, and a Python that has neither torch nor peft."""

import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
import pytest

import jaxmix
from jaxmix.errors import CheckpointError

from .peft.folders import SITE, refused, save

FILES = ("adapter_config.json", "adapter_model.safetensors")


# -------------------------------------------------------------------------------------- paths


def test_paths_of_every_kind(tmp_path, monkeypatch):
    """A string, a Path, one that is relative, one at home, one with a slash at its end, a link."""
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


def test_a_folder_is_preferred_to_the_hub(tmp_path, monkeypatch):
    """What looks like an id and is a folder here is read here."""
    save(tmp_path / "owner" / "style")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    assert jaxmix.load("owner/style").name == "style"


def test_a_file_instead_of_its_folder(tmp_path):
    """The folder is what has both."""
    path = save(tmp_path) / FILES[1]
    assert refused(CheckpointError, path) == (
        f"{path} is a file, expected a folder with adapter_config.json and "
        "adapter_model.safetensors. Give the folder that holds it."
    )


EXPECTED = (
    "Expected a folder with adapter_config.json and adapter_model.safetensors, or 'owner/name'."
)


@pytest.mark.parametrize("path", ["no/such/folder", "nothing", "/no/such", "a b/c", "a\0b", "é/x"])
def test_neither_a_folder_nor_an_id(path):
    """An id has one slash and plain letters."""
    said = refused(CheckpointError, path)
    assert said == f"{path!r} is neither a folder nor a hub id.\n{EXPECTED}"


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000, "x/" * 3000])
def test_what_can_not_be_looked_up(path):
    """The system's own reason is passed on, and the path is cut."""
    said = refused(CheckpointError, path)
    assert said.startswith(repr(path[:79])[:-1]) and "can't be looked up: " in said
    assert said.endswith(EXPECTED)


def test_a_folder_closed_to_us(tmp_path, monkeypatch):
    """Where even the look is forbidden."""
    folder = save(tmp_path)

    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", closed)
    said = refused(CheckpointError, folder)
    assert f"{str(tmp_path)!r} can't be looked up: [Errno 13] Permission denied" in said


def test_subfolders(tmp_path):
    """They name the adapter, and stay inside."""
    save(tmp_path / "repo" / "a" / "b")
    assert jaxmix.load(tmp_path / "repo", subfolder="a/b").name == "b"
    assert jaxmix.load(tmp_path / "repo" / "a" / "b", subfolder=None).name == "b"
    for out in ("..", "../repo", "a/../../x", str(tmp_path), "a\\b", "", "."):
        assert refused(CheckpointError, tmp_path / "repo", subfolder=out) == (
            f"subfolder {out!r} is no path inside its folder, expected one such as "
            "'checkpoint-100'. Give the folder itself as the first argument."
        )
    said = refused(CheckpointError, tmp_path / "repo", subfolder="c")
    assert f"{tmp_path / 'repo' / 'c'} has no adapter_config.json; found no such folder" in said


def test_a_subfolder_that_is_a_link(tmp_path):
    """Links are their owner's business: the hub's own cache is made of them."""
    save(tmp_path / "elsewhere")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "link").symlink_to(tmp_path / "elsewhere")
    assert jaxmix.load(tmp_path / "repo", subfolder="link").name == "elsewhere"


# ------------------------------------------------------------------------ without torch and peft


def test_without_torch_and_peft(tmp_path):
    """Reading and composing import neither, and work where they can't be imported."""
    save(tmp_path / "lora")
    save(tmp_path / "oft", "oft")
    program = f"""
        import sys
        blocked = ("torch", "peft", "transformers")
        for name in blocked:
            sys.modules[name] = None
            try:
                __import__(name)
            except ImportError:
                continue
            raise SystemExit("not blocked")
        import numpy as np
        import jaxmix
        adapters = [jaxmix.load({str(tmp_path)!r} + "/" + name) for name in ("lora", "oft")]
        out = jaxmix.compose({{"{SITE}.weight": np.ones((6, 4), np.float32)}}, adapters)
        assert not [m for m in sys.modules if m.split(".")[0] in blocked and sys.modules[m]]
        print(out["{SITE}.weight"].shape)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "(6, 4)\n"), done.stderr
