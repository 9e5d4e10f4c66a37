"""Small files and paths: those that would hang or exhaust memory are refused without a read."""

import os
from pathlib import Path

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
)


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
    with pytest.raises(CheckpointError, match="is a folder, expected a regular file"):
        check_regular(tmp_path / "folder")
    check_regular(tmp_path / "nothing")


def test_sparse_file_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"has 1,099,511,627,776 bytes, expected at most"):
        read_small(tmp_path / "config.json")
    (tmp_path / "small").write_bytes(b"12345")
    assert read_small(tmp_path / "small", 5) == b"12345"
    with pytest.raises(CheckpointError, match="has 5 bytes, expected at most 4"):
        read_small(tmp_path / "small", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested more than 100 deep"),
        ("9" * 1001, "an integer has 1,001 digits, expected at most 1000"),
        ("{", "Expecting property name"),
        (b"\xff", "invalid start byte"),
    ],
)
def test_json_beyond_its_limits(text, message):
    with pytest.raises(ValueError, match=message):
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
    with pytest.raises(CheckpointError):
        jaxmix.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["mix.json", "model.safetensors", "model.safetensors.index.json", "config.json"]
)
def test_checkpoint_or_mix_with_a_named_pipe(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for read in (jaxmix.load, read_checkpoint):
        with pytest.raises(CheckpointError):
            read(tmp_path)


@pytest.mark.parametrize("depth", [200, 20_000])
def test_deeply_nested_config(tmp_path, depth):
    (tmp_path / "adapter_config.json").write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(CheckpointError, match="nested more than 100 deep"):
        jaxmix.load(tmp_path)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "~nobody-of-this-name/x", "x" * 5000])
def test_impossible_paths(path, tmp_path):
    adapter = jaxmix.Adapter({}, name="a")
    for use in (
        lambda: local_path(path),
        lambda: jaxmix.load(path),
        lambda: jaxmix.save(adapter, path),
        lambda: read_checkpoint(path),
        lambda: jaxmix.merge_checkpoint(path, adapter, tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match=r"can't be looked up: .*Check its spelling"):
            use()


def test_circular_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for use in (jaxmix.load, read_checkpoint, lambda p: jaxmix.save(jaxmix.Adapter({}), p)):
        with pytest.raises(
            CheckpointError, match="can't be looked up: Too many levels of symbolic"
        ):
            use(tmp_path / "a")


def test_path_of_bytes():
    with pytest.raises(CheckpointError, match="the path is b'x', expected a string or a pathlib"):
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
    """Simulated, since root may enter all folders."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "mine")
    adapter = jaxmix.Adapter({}, name="a")
    for use in (
        jaxmix.load,
        read_checkpoint,
        lambda path: jaxmix.save(adapter, path),
        lambda path: jaxmix.merge_checkpoint(path, adapter, tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError) as caught:
            use(tmp_path / "mine")
        assert str(caught.value).endswith(
            "can't be looked up: Permission denied. Check its spelling."
        )


def test_sizes_on_disk(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 5000)
    assert occupied(path) == 5000
    with path.open("wb") as file:
        file.write(b"x")
        file.truncate(1 << 33)
    if occupied(path) == 1 << 33:
        pytest.skip("the file system does not say, or has no sparse files")
    with pytest.raises(
        CheckpointError, match=r"claims 8,589,934,592 bytes, but only [0-9,]+ are stored on disk"
    ):
        check_on_disk(path)
    check_on_disk(tmp_path / "nothing")


def test_output_paths(tmp_path):
    assert output_path(tmp_path / "x") == tmp_path / "x"
    for path, text in (
        ("", "the picture is an empty string, expected a path. Pass one."),
        ("/", "the picture / is the root of the file system, expected a folder or file in it."),
        ("/..", "the picture /.. is the root of the file system, expected a folder or file in it."),
    ):
        with pytest.raises(CheckpointError) as caught:
            output_path(path, "picture")
        assert text in str(caught.value)
