"""Opening safetensors files: a file of another kind is named in the error."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import occupied
from jaxmix.untrusted.safetensors import open_safetensors, opened_safetensors, tensor_bytes

from ..messages import full_text

ADVICE = "Ask its author."


def refused(path: Path, advice: str = ADVICE) -> str:
    """Returns the error's message for a file."""
    with pytest.raises(CheckpointError) as caught:
        open_safetensors(path, advice=advice)
    return str(caught.value)


def saved(path: Path) -> Path:
    """Saves a file with one tensor."""
    save_file({"a": np.arange(4, dtype=np.float32)}, path)
    return path


def test_tensors_are_read(tmp_path: Path) -> None:
    with opened_safetensors(saved(tmp_path / "x.safetensors")) as file:
        assert list(file.keys()) == ["a"]
        assert np.array_equal(file.get_tensor("a"), np.arange(4))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a Git LFS pointer: run `git lfs pull` in its repository.",
        ),
        (
            b"PK\x03\x04" + bytes(100),
            "it is a zip file of torch.save, which contains a pickle; jaxmix opens no pickles.",
        ),
        (
            b"\x80\x02}q\x00" + bytes(100),
            "it is a pickle under another name; jaxmix opens no pickles.",
        ),
        (b"<!doctype html><title>404</title>", "it is a web page: the download failed."),
        (b"", "it is empty. Was the download interrupted?"),
    ],
)
def test_other_kinds_of_files_are_recognized(data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert refused(path) == f"{path} is not a complete safetensors file: {problem} {ADVICE}"


def test_header_that_begins_like_another_kind(tmp_path: Path) -> None:
    """A header of 128 bytes begins with the byte of a pickle, but has an opening brace after it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes((128).to_bytes(8, "little") + b"{" + b" " * 127)
    message = refused(path)
    assert message.startswith(f"{path} is not a complete safetensors file: ")
    assert message.endswith(f". {ADVICE}") and "pickle" not in message


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert refused(path) == f"{path} does not exist. Pass the path of a file."


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since root may read all files."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert refused(path) == (
        f"{path} can't be read: Permission denied. Expected a file that you may read."
    )


def test_error_within_the_block_names_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as caught, opened_safetensors(path, advice=ADVICE):
        raise OSError("the disk is gone")
    assert str(caught.value) == (
        f"{path} is not a complete safetensors file: the disk is gone. {ADVICE}"
    )


def test_sparse_file_is_refused_only_if_all_of_it_is_read(tmp_path: Path) -> None:
    path, size = tmp_path / "x.safetensors", 1 << 33
    header = f'{{"a":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'.encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    if os.stat(path).st_blocks * 512 > size // 2:
        pytest.skip("the file system has no sparse files")
    assert list(open_safetensors(path).keys()) == ["a"]
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/x.safetensors claims 8,589,934,671 bytes, but only "
            f"{occupied(path):,} are stored on disk. Was the download interrupted? "
            "Download or save it again."
        ),
    ):
        open_safetensors(path, is_read_whole=True)


def test_bytes_of_dtypes_that_numpy_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = np.array([[1, 2, 3]], ml_dtypes.bfloat16)
    save_file({"a": tensor}, path)
    assert tensor_bytes(path) == {"a": ((1, 3), tensor.tobytes())}
