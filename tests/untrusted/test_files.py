"""Small files and paths: those that would hang or exhaust memory are refused without a read."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.errors import CheckpointError
from jaxmix.untrusted.files import (
    check_on_disk,
    check_regular,
    header_problem,
    local_path,
    occupied,
    output_path,
    parse_json,
    read_small,
    shown,
)

from ..messages import full_text


def test_named_pipes_devices_and_folders(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, description in (("pipe", "a named pipe"), ("zero", "a device")):
        for open_it in (read_small, check_regular):
            with pytest.raises(CheckpointError) as caught:
                open_it(tmp_path / name)
            assert str(caught.value) == (
                f"{tmp_path / name} is {description}, expected a regular file. Put one there."
            )
    message = f"{tmp_path / 'folder'} is a folder, expected a regular file. Put one there."
    with pytest.raises(CheckpointError, match=full_text(message)):
        check_regular(tmp_path / "folder")
    check_regular(tmp_path / "nothing")


def test_sparse_file_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    message = (
        f"{tmp_path / 'config.json'} has 1,099,511,627,776 bytes, expected at most 67,108,864. Is "
        "it the right file?"
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        read_small(tmp_path / "config.json")
    (tmp_path / "small").write_bytes(b"12345")
    assert read_small(tmp_path / "small", 5) == b"12345"
    message = f"{tmp_path / 'small'} has 5 bytes, expected at most 4. Is it the right file?"
    with pytest.raises(CheckpointError, match=full_text(message)):
        read_small(tmp_path / "small", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 101 + "]" * 101, "it is nested more than 100 deep"),
        ("[" * 100_000, "it is nested more than 100 deep"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "it is nested more than 100 deep"),
        ("9" * 1001, "an integer has 1,001 digits, expected at most 1000"),
    ],
)
def test_json_beyond_its_limits(text, message):
    with pytest.raises(ValueError, match=full_text(message)):
        parse_json(text)


@pytest.mark.parametrize("text", ["{", b"\xff"])
def test_invalid_json_has_the_message_of_python(text):
    with pytest.raises(ValueError) as expected:
        json.loads(text.decode() if isinstance(text, bytes) else text)
    with pytest.raises(ValueError, match=full_text(str(expected.value))):
        parse_json(text)


def test_json_within_its_limits():
    assert parse_json(b'{"a": [1, 1e30, "b"]}') == {"a": [1, 1e30, "b"]}
    parse_json("[" * 100 + "]" * 100)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapter_whose_file_is_a_named_pipe(tmp_path, name):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    factors = {"base_model.model.q.lora_A.weight": np.ones((1, 2))}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    message = f"{tmp_path / name} is a named pipe, expected a regular file. Put one there."
    with pytest.raises(CheckpointError, match=full_text(message)):
        jaxmix.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("mix.json", jaxmix.load),
        ("model.safetensors", read_checkpoint),
        ("model.safetensors.index.json", read_checkpoint),
        ("config.json", jaxmix.models.read_config),
    ],
)
def test_checkpoint_or_mix_with_a_named_pipe(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    message = f"{tmp_path / name} is a named pipe, expected a regular file. Put one there."
    with pytest.raises(CheckpointError, match=full_text(message)):
        read(tmp_path)


@pytest.mark.parametrize("depth", [200, 20_000])
def test_deeply_nested_config(tmp_path, depth):
    (tmp_path / "adapter_config.json").write_text('{"a":' * depth + "1" + "}" * depth)
    message = (
        f"{tmp_path / 'adapter_config.json'} is not JSON: it is nested more than 100 deep. "
        "Expected the object that save_pretrained writes; save or download it again."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        jaxmix.load(tmp_path)


def readers_and_writers(out: Path) -> list[tuple[str, Callable[[Any], object]]]:
    """Returns functions that take a path, and what their messages call it."""
    adapter = jaxmix.Adapter({}, name="a")
    return [
        ("adapter", jaxmix.load),
        ("output", lambda path: jaxmix.save(adapter, path)),
        ("base", read_checkpoint),
        ("base", lambda path: jaxmix.merge_checkpoint(path, adapter, out)),
    ]


def lookup_error(path: str) -> str:
    """Returns the reason why Python itself can't look up a path."""
    try:
        Path(path).expanduser().stat()
    except OSError as error:
        return str(error.strerror)
    except (RuntimeError, ValueError) as error:
        return str(error).rstrip(".")
    raise AssertionError(path)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "~nobody-of-this-name/x", "x" * 5000])
def test_impossible_paths(path, tmp_path):
    for subject, use in [("path", local_path), *readers_and_writers(tmp_path / "out")]:
        message = (
            f"the {subject} {shown(path)} can't be looked up: {lookup_error(path)}. Check its "
            "spelling."
        )
        with pytest.raises(CheckpointError, match=full_text(message)):
            use(path)


def test_long_paths_are_shortened_in_messages():
    assert shown("x" * 300) == repr("x" * 300)
    assert shown("x" * 301) == repr("x" * 299 + "…")


def test_circular_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for subject, use in readers_and_writers(tmp_path / "out"):
        message = (
            f"the {subject} {shown(str(tmp_path / 'a'))} can't be looked up: "
            f"{os.strerror(errno.ELOOP)}. Check its spelling."
        )
        with pytest.raises(CheckpointError, match=full_text(message)):
            use(tmp_path / "a")


def test_path_of_bytes():
    message = "the path is b'x', expected a string or a pathlib.Path."
    with pytest.raises(CheckpointError, match=full_text(message)):
        local_path(b"x")  # pyright: ignore[reportArgumentType]


def test_truncated_files_are_described(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(4, np.float32)}, path)
    data = path.read_bytes()
    assert header_problem(path) is None
    for size in (len(data) - 1, 20):
        path.write_bytes(data[:size])
        size_needed = len(data) if size > 20 else len(data) - 16
        assert header_problem(path) == (
            f"it ends after {size} of {size_needed} bytes. Was the download interrupted?"
        )
    path.write_bytes(b"")
    assert header_problem(path) == "it is empty. Was the download interrupted?"
    for other in (b"PK\x03\x04 a zip and so on", b"<html> a page of the web </html>"):
        path.write_bytes(other)
        assert header_problem(path) is None
    assert header_problem(Path("no/such/file")) is None


def test_folder_without_permission(tmp_path, monkeypatch):
    """The missing permission is simulated, since root may enter all folders."""
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked)
    for subject, use in readers_and_writers(tmp_path / "out"):
        message = (
            f"the {subject} {shown(str(locked))} can't be looked up: {os.strerror(errno.EACCES)}. "
            "Check its spelling."
        )
        with pytest.raises(CheckpointError, match=full_text(message)):
            use(locked)


def test_sizes_on_disk(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 5000)
    assert occupied(path) == 5000
    with path.open("wb") as file:
        file.write(b"x")
        file.truncate(1 << 33)
    if occupied(path) == 1 << 33:
        pytest.skip("the file system has no sparse files, or does not report them")
    message = (
        f"{path} claims 8,589,934,592 bytes, but only {occupied(path):,} are stored on disk. Was "
        "the download interrupted? Download or save it again."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        check_on_disk(path)
    check_on_disk(tmp_path / "nothing")


def test_output_paths(tmp_path):
    assert output_path(tmp_path / "x") == tmp_path / "x"
    for path, message in (
        ("", "the picture is an empty string, expected a path. Pass one."),
        ("/", "the picture / is the root of the file system, expected a folder or file in it."),
        ("/..", "the picture /.. is the root of the file system, expected a folder or file in it."),
    ):
        with pytest.raises(CheckpointError, match=full_text(message)):
            output_path(path, "picture")
