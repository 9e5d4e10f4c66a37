"""adapter_model.safetensors: truncated, corrupt, missing, of another format; cost of reading."""

import json
import os
import pickle
import struct
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.files.torch_files import has_torch
from jaxmix.errors import CheckpointError

from ..peft.folders import FORMS, SITE, factors, keyed, packed, refused, save

WEIGHTS = "adapter_model.safetensors"


def with_bytes(folder, data):
    """A valid folder whose weights have these bytes."""
    save(folder)
    (folder / WEIGHTS).write_bytes(data)
    return folder


def file_of(header, data=b"", length=None):
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


GOOD = packed(keyed(factors(FORMS["lora"])))
HEADER = 8 + struct.unpack("<Q", GOOD[:8])[0]


def tensor(shape, *offsets, dtype="F32"):
    """A tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def damaged(folder, data):
    """The message for a damaged file, which has the path, the size and a remedy."""
    message = refused(CheckpointError, with_bytes(folder, data))
    assert message.startswith(f"{folder / WEIGHTS} is not a complete safetensors file: ")
    assert message.endswith(
        "Expected the file that save_pretrained wrote; download or save it again."
    )
    return message


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, HEADER // 2, HEADER - 1, HEADER, HEADER + 1, -1])
def test_truncated_file(cut, tmp_path):
    """A download may stop at any position."""
    damaged(tmp_path, GOOD[:cut])


@pytest.mark.parametrize(
    "data",
    [
        GOOD + b"x",
        bytes(100),
        file_of(b"{not json"),
        file_of(b"\xff\xfe\xfd"),
        file_of([]),
        file_of({}, length=2**60),
        file_of({}, length=2**63 + 1),
        file_of({}, length=90_000_000),
        file_of({"a": 3}),
        file_of({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
        file_of({"a": tensor([3], 0, 8)}, bytes(8)),
        file_of({"a": tensor([-3], 0, 8)}, bytes(8)),
        file_of({"a": tensor([2**40, 2**40], 0, 8)}, bytes(8)),
        file_of({"a": tensor([2], 0, 8, dtype="F99")}, bytes(8)),
        file_of({"a": tensor([2], 800, 808)}, bytes(8)),
    ],
    ids=range(15),
)
def test_corrupt_file(data, tmp_path):
    """Refuses extra or missing bytes, garbage, wrong sizes and overlapping tensors."""
    damaged(tmp_path, data)


def test_flipped_bytes_of_the_header(tmp_path):
    """The result is a JaxmixError or an adapter."""
    for position in range(HEADER):
        data = bytearray(GOOD)
        data[position] ^= 0x15
        try:
            jaxmix.load(with_bytes(tmp_path, bytes(data)))
        except jaxmix.JaxmixError:
            pass


@pytest.mark.parametrize(
    ("data", "description"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "it is a Git LFS pointer: run `git lfs pull` in its repository",
        ),
        (b"<!DOCTYPE html><html>404</html>", "it is a web page: the download failed"),
        (
            b"PK\x03\x04" + bytes(50),
            "it is a zip file of torch.save, which contains a pickle; jaxmix opens no pickles",
        ),
    ],
)
def test_other_formats(data, description, tmp_path):
    """The error names the format if it is recognizable."""
    assert description in damaged(tmp_path, data)


def test_ambiguous_header_length(tmp_path):
    """The first bytes are the length, and may look like those of a pickle or a web page."""
    for length in (0x80, 0x3C):
        text = json.dumps({"__metadata__": {"x": ""}}).encode()
        header = text + b" " * (length - len(text))
        assert "contains no tensors" in refused(
            CheckpointError, with_bytes(tmp_path, file_of(header))
        )
        message = damaged(tmp_path, file_of(header)[:-9])
        assert "pickle" not in message and "page" not in message


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        """Remember which."""
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_is_unpickled(protocol, tmp_path):
    """A pickle as the weights, as the config or as PEFT's old file is refused, and never runs."""
    trap = tmp_path / "sprung"
    pickled = pickle.dumps(Trap(str(trap)), protocol)
    folder = tmp_path / "adapter"
    message = damaged(folder, pickled)
    assert protocol < 2 or "it is a pickle under another name; jaxmix opens no pickles" in message
    (folder / "adapter_model.bin").write_bytes(pickled)
    (folder / WEIGHTS).unlink()
    expected = "can't be read by torch.load(weights_only=True), which runs no code"
    assert (expected if has_torch() else "jaxmix does not read pickles") in refused(
        CheckpointError, folder
    )
    (folder / "adapter_config.json").write_bytes(pickled)
    refused(CheckpointError, folder)
    assert not trap.exists()
    pickle.loads(pickled)
    assert trap.exists()  # the trap works


def test_folder_without_weights_is_refused(tmp_path):
    """The error lists the folder's files."""
    folder = save(tmp_path)
    (folder / WEIGHTS).unlink()
    assert (
        f"{folder} has no {WEIGHTS}; found adapter_config.json. "
        "Pass the folder that PEFT's save_pretrained wrote." in refused(CheckpointError, folder)
    )


def test_pickled_weights_without_torch(tmp_path, monkeypatch):
    """The error shows the conversion, with this folder's paths."""
    monkeypatch.setitem(sys.modules, "torch", None)
    folder = save(tmp_path)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert refused(CheckpointError, folder) == (
        f"{folder} has adapter_model.bin but no {WEIGHTS}. jaxmix does not read pickles. With "
        f"torch:\n"
        f"  tensors = torch.load({str(folder / 'adapter_model.bin')!r}, map_location='cpu', "
        "weights_only=True)\n"
        f"  safetensors.torch.save_file(tensors, {str(folder / WEIGHTS)!r})"
    )


def test_unreadable_weights(tmp_path):
    """A folder with the file's name stands for a file that the system refuses to open."""
    folder = save(tmp_path)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert f"{folder / WEIGHTS} is a folder, expected a regular file. Put one there." in refused(
        CheckpointError, folder
    )


def test_each_tensor_is_copied_once(tmp_path):
    """The file is mapped: there is no second copy next to the arrays."""
    shapes = {"lora_A.weight": (2, 2_000_000), "lora_B.weight": (3, 2)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    folder = save(tmp_path, tensors=keyed(tensors))
    del tensors
    tracemalloc.start()
    try:
        adapter = jaxmix.load(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = (folder / WEIGHTS).stat().st_size
    update: Any = adapter.updates[SITE]
    # Checking each number takes one byte.
    assert update.a.nbytes < peak < 1.3 * size
