"""`load`: paths, subfolders, and Python without torch and peft."""

import os
import subprocess
import sys
import textwrap

import huggingface_hub
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.converters.adapters import loading
from jaxmix.converters.adapters.format import Format
from jaxmix.converters.adapters.loading import FORMATS
from jaxmix.errors import CheckpointError, UnsupportedError

from .peft.folders import SITE, refused, save

KNOWN = ", ".join(repr(reader.name) for reader in loading.FORMATS)
FILES = ("adapter_config.json", "adapter_model.safetensors")


# -------------------------------------------------------------------------------------- paths


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


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000, "a\0b", "\ud800"])
def test_unreadable_paths(path):
    """The system's reason is reported, and the path is shortened."""
    message = refused(CheckpointError, path)
    assert (
        message.startswith(f"the adapter {path[:79]!r}"[:-1]) and "can't be looked up: " in message
    )
    assert message.endswith(". Check its spelling.")


def test_folder_without_permission(tmp_path, monkeypatch):
    """Even listing it is forbidden."""
    folder = save(tmp_path)

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = refused(CheckpointError, folder)
    assert message.endswith(" can't be looked up: Permission denied. Check its spelling.")


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


# ------------------------------------------------------------------------ without torch and peft


def test_torch_and_peft_are_not_imported(tmp_path):
    """Reading and composing import neither, and work without them."""
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
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "(6, 4)\n"), process.stderr


# ------------------------------------------------------------------------------------ formats


def test_format_by_name(tmp_path):
    """A format can be forced; an unknown one is refused."""
    folder = save(tmp_path / "style")
    assert jaxmix.load(folder, format="peft").name == "style"
    message = refused(UnsupportedError, folder, format="pickle")
    assert message == f"format 'pickle' is unknown, expected one of {KNOWN}."


def test_unknown_options(tmp_path):
    """No unknown option is ignored."""
    folder = save(tmp_path / "style")
    message = refused(UnsupportedError, folder, rank=3, colour="red")
    assert message.startswith("style has the format 'peft', whose reader takes ")
    assert message.endswith(
        ", not colour=…, rank=…. Leave it out, or read another format: format='…'."
    )


def test_file_of_unknown_format(tmp_path):
    """Refused, and so is such a file with a subfolder."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    message = refused(CheckpointError, path)
    assert message.startswith(f"{path} is a file, expected a folder with adapter_config.json and ")
    message = refused(CheckpointError, path, subfolder="a")
    # The path is shortened if pytest's folder is long.
    assert message.startswith(f"'{str(path)[:20]}")
    assert message.endswith(f"' is a file, which has no subfolder.\n{EXPECTED}")


def test_new_format_is_a_row_of_the_table(tmp_path, monkeypatch):
    """It reads files that it recognizes, unless another format is forced."""
    new_format = Format(
        name="mine",
        description="a file .mine",
        recognizes=lambda path: path.suffix == ".mine",
        read=lambda path, name, strength, *, rank=1: Adapter({}, strength, f"{name} {rank}"),
        options=("rank",),
    )
    monkeypatch.setattr(loading, "FORMATS", (new_format, *loading.FORMATS))
    folder = save(tmp_path / "style")
    path = tmp_path / "x.mine"
    path.write_bytes(b"")
    assert jaxmix.load(folder).name == "style"
    assert jaxmix.load(path, rank=3, strength=0.5).name == "x 3"
    assert jaxmix.load(folder, format="mine").name == "style 1"
    assert "has no adapter_config.json" in refused(CheckpointError, path, format="peft")


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
