"""`load`: paths, subfolders, the hub, and a Python that has neither torch nor peft."""

import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

import jaxmix
from jaxmix import JaxmixError
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


# ------------------------------------------------------------------------------------ the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache laid out as the hub's client does it, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v2").write_text(COMMIT[::-1])
    return repo / "snapshots"


def test_from_the_cache(cache):
    """The real client, offline: the whole repository, a subfolder, a revision."""
    save(cache / COMMIT)
    save(cache / COMMIT / "inner" / "style")
    save(cache / COMMIT[::-1], "oft")
    assert jaxmix.load("owner/name").name == "name"
    assert jaxmix.load("owner/name", "mine").name == "mine"
    assert jaxmix.load("owner/name", subfolder="inner/style").name == "style"
    assert jaxmix.load("owner/name").updates[SITE].family == "LoRA"
    for revision in ("v2", COMMIT[::-1]):
        assert jaxmix.load("owner/name", revision=revision).updates[SITE].family == "OFT"


def test_not_in_the_cache(cache):
    """Which file of which repository, and both ways out."""
    for options, place in (
        ({}, "owner/name on the hub"),
        ({"subfolder": "x"}, "owner/name/x on the hub"),
        ({"revision": "v9"}, "owner/name on the hub at revision 'v9'"),
    ):
        assert refused(CheckpointError, "owner/name", **options) == (
            f"{place}: adapter_config.json is not in the local cache and the hub can't be reached. "
            "'owner/name' is no folder here either: go online once, or give the path of a "
            "downloaded folder."
        )
    save(cache / COMMIT)
    (cache / COMMIT / FILES[1]).unlink()
    said = refused(CheckpointError, "owner/name")
    assert "adapter_model.safetensors is not in the local cache" in said
    assert "'owner/else' is no folder here either" in refused(CheckpointError, "owner/else")


def test_damaged_in_the_cache(cache):
    """The path of the bad file is named, so that it can be thrown away."""
    save(cache / COMMIT)
    (cache / COMMIT / FILES[1]).write_bytes(b"x")
    said = refused(CheckpointError, "owner/name")
    assert said.startswith(f"{cache / COMMIT / FILES[1]} (1 bytes) is no whole safetensors file")


def failing(kind, at=FILES[0], folder=Path()):
    """A download that raises at one file, as the hub's client would, and finds the other."""

    def download(repo_id, filename, *, subfolder=None, revision=None):
        assert repo_id == "owner/name" and filename in FILES
        if filename == at:
            error = kind.__new__(kind)
            error.args = ("what the client said",)
            raise error
        return str(folder / filename)

    return download


GATED = "is gated. Ask for access on its page, then `hf auth login`."
UNKNOWN = (
    "'owner/name' is neither a folder here nor a repository on the hub. Check the spelling; a "
    "private repository needs `hf auth login`."
)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (errors.GatedRepoError, f"owner/name/sub on the hub at revision 'v1' {GATED}"),
        (errors.RepositoryNotFoundError, UNKNOWN),
        (
            errors.RevisionNotFoundError,
            "owner/name on the hub has no revision 'v1'. Give a branch, a tag or a commit that it "
            "has.",
        ),
        (
            errors.EntryNotFoundError,
            "owner/name/sub on the hub at revision 'v1' has no adapter_config.json, so it is no "
            "PEFT adapter there. If it lies in a folder of the repository, say subfolder='…'.",
        ),
        (errors.HfHubHTTPError, None),
        (errors.HFValidationError, None),
        (ConnectionError, None),
        (OSError, None),
        (RuntimeError, None),
    ],
)
def test_what_the_hub_says(kind, expected, monkeypatch):
    """Each of the client's errors in our words, and any other passed on in its own."""
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(kind))
    expected = expected or (
        "owner/name/sub on the hub at revision 'v1': adapter_config.json can't be had: what the "
        "client said. Try again, or download the folder and give its path."
    )
    with pytest.raises(JaxmixError) as caught:
        jaxmix.load("owner/name", subfolder="sub", revision="v1")
    assert caught.type is CheckpointError and str(caught.value) == expected
    assert isinstance(caught.value.__cause__, kind)


def test_a_repository_with_pickles_only(tmp_path, monkeypatch):
    """How to convert them; they are not even downloaded."""
    folder = save(tmp_path)
    download = failing(errors.EntryNotFoundError, FILES[1], folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert refused(CheckpointError, "owner/name") == (
        "owner/name on the hub has no adapter_model.safetensors. If it has a .bin, download the "
        "folder and convert it: jaxmix reads no pickles. With torch:\n"
        "  tensors = torch.load('adapter_model.bin', map_location='cpu', weights_only=True)\n"
        "  safetensors.torch.save_file(tensors, 'adapter_model.safetensors')"
    )


def test_a_repository_that_changes_meanwhile(tmp_path, monkeypatch):
    """Two files of two commits are no adapter."""
    for name in FILES:
        save(tmp_path / name)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(tmp_path / file / file)
    )
    assert refused(CheckpointError, "owner/name") == (
        "owner/name on the hub changed between its two files. Try again, or give a commit: "
        "revision='…'."
    )


def test_what_is_asked_of_the_hub(tmp_path, monkeypatch):
    """Two files, with subfolder and revision, and nothing else."""
    folder = save(tmp_path)
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options))
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert jaxmix.load("own.er/na_me-1", subfolder="a/b", revision="v1").name == "b"
    options = {"subfolder": "a/b", "revision": "v1"}
    assert asked == [("own.er/na_me-1", name, options) for name in FILES]
    refused(CheckpointError, "owner/name", subfolder="../x")
    assert len(asked) == 2


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
