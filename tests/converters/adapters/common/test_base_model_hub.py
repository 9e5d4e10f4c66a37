"""Hub ids as base: of `merge_checkpoint`, of `load`, and on the command line."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.files.hub import base_folder
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError

from ....messages import full_text
from ...bases import Adapters, contents
from ...cli.running import Captured, main, run_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base in a cache with the layout of the hub's client, links included, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--owner--base"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for i, file in enumerate(path for path in sorted(sharded.rglob("*")) if path.is_file()):
        (repo / "blobs" / f"{i}").write_bytes(file.read_bytes())
        link = repo / "snapshots" / COMMIT / file.relative_to(sharded)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(repo / "blobs" / f"{i}")
    return sharded


def test_merge_by_hub_id(cached: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The same output as from the folder, and verified; a commit may be given."""
    lora = jaxmix.load(adapters["lora"])
    merge_checkpoint(cached, lora, tmp_path / "expected")
    for i, text in enumerate(["owner/base", f"owner/base@{COMMIT}", Path("owner/base")]):
        merge_checkpoint(text, lora, tmp_path / f"{i}", verify=True)
        assert contents(tmp_path / f"{i}") == contents(tmp_path / "expected")
    assert verify_merge("owner/base", lora, tmp_path / "0").ok
    assert read_checkpoint("owner/base").tensors.keys() == read_checkpoint(cached).tensors.keys()


def test_commands_by_hub_id(
    cached: Path, adapters: Adapters, tmp_path: Path, capsys: Captured
) -> None:
    """Commands accept an id as BASE and as --base."""
    args = ("-a", adapters["lora"], "-o")
    document = run_json(capsys, "merge", "owner/base", *args, tmp_path / "out")
    assert document["base"] == "owner/base"
    assert main("merge", cached, *args, tmp_path / "expected") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    capsys.readouterr()
    args = ("inspect", adapters["oft"], "--measure", "--base")
    assert run_json(capsys, *args, "owner/base") == run_json(capsys, *args, cached)


def test_folder_takes_precedence(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A string that is not an id never reaches the hub."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    (tmp_path / "owner").mkdir()
    sharded.rename(tmp_path / "owner" / "base")
    monkeypatch.chdir(tmp_path)
    assert base_folder("owner/base") == Path("owner/base")
    for text in ("nothing", "no/such/folder", "./no/such", str(tmp_path / "x" / "y"), "a b/c"):
        with pytest.raises(CheckpointError) as caught:
            base_folder(text)
        assert str(caught.value) == (
            f"{text} does not exist, expected a Hugging Face folder with safetensors, or the id of "
            "a repository on the hub, 'owner/name'."
        )
    assert len(read_checkpoint("owner/base").shards) == 3
    message = (
        "nothing does not exist, expected a Hugging Face folder with safetensors, or the id of a "
        "repository on the hub, 'owner/name'."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        read_checkpoint("nothing")


def test_downloaded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, configs and tokenizer, but not the weights in other libraries' formats."""
    requests: list[Any] = []

    def download(repo_id: str, **options: Any) -> str:
        requests.append((repo_id, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert base_folder("owner/name@v1") == tmp_path
    ((repo_id, options),) = requests
    assert (repo_id, options["revision"]) == ("owner/name", "v1")
    from fnmatch import fnmatch

    def is_fetched(name: str) -> bool:
        patterns, ignored_patterns = options["allow_patterns"], options["ignore_patterns"]
        return any(fnmatch(name, x) for x in patterns) and not any(
            fnmatch(name, x) for x in ignored_patterns
        )

    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"):
        assert is_fetched(name)
    for name in ("tokenizer.model", "merges.txt", "2_Dense/model.safetensors", "modeling_x.py"):
        assert is_fetched(name)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "original/x.pth", "q4.gguf"):
        assert not is_fetched(name)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            errors.LocalEntryNotFoundError,
            "owner/name on the hub: the checkpoint is not in the local cache, and the hub can't "
            "be reached. Connect to the internet to download it, or use the path of a folder.",
        ),
        (
            errors.RepositoryNotFoundError,
            "'owner/name' is neither a local folder nor a repository on the hub. Check the "
            "spelling; a private repository needs `hf auth login`.",
        ),
        (
            ConnectionError,
            "owner/name on the hub: the checkpoint can't be downloaded: what the client said. Try "
            "again, or download the folder and use its path.",
        ),
    ],
)
def test_hub_errors(
    kind: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Each error of the client becomes a message that says what to do."""

    def download(repo_id: str, **options: Any) -> str:
        error = kind.__new__(kind)
        error.args = ("what the client said",)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint("owner/name", [], tmp_path / "out")
    assert str(caught.value) == expected
    assert main("merge", "owner/name", "-a", "x", "-o", tmp_path / "out") == 1
    assert capsys.readouterr().err.strip() == f"error: {expected}"
