"""Keys and metadata of an adapter's file, without the names of wrappers."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmix.converters.adapters.common.tensor_files import (
    file_keys,
    file_metadata,
    file_tensors,
    has_peft_keys,
    is_adapter_by_itself,
    parse_json_or_none,
    strip_wrappers,
)
from jaxmix.errors import CheckpointError

from ....messages import full_text

ONE = np.ones((2, 3), np.float32)


def test_keys_that_become_equal_are_listed() -> None:
    """All pairs, with the first of the keys that are equal; other tensors are kept in order."""
    assert strip_wrappers({"module.b.w": 1, "module.a.w": 2}, "x") == {"b.w": 1, "a.w": 2}
    both = {"_orig_mod.a.w": 1, "a.w": 2, "_orig_mod.b.w": 3, "b.w": 4}
    message = (
        "x: keys that differ only in the names of wrappers (such as _orig_mod and module):\n"
        "  _orig_mod.a.w and a.w\n  _orig_mod.b.w and b.w\n"
        "Remove one key of each pair from the file."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        strip_wrappers(both, "x")


def test_unreadable_file_has_no_keys(tmp_path: Path) -> None:
    """Whether a file is an adapter is decided without an error; reading it raises one."""
    path = tmp_path / "x.safetensors"
    for place in (path, tmp_path / "none.safetensors"):
        path.write_bytes(b"no header")
        assert file_keys(place) == () and file_metadata(place) == {}
    save_file({"_orig_mod.a.w": ONE}, path, metadata={"a": "b"})
    assert file_keys(path) == ("a.w",) and file_metadata(path) == {"a": "b"}
    assert list(file_tensors(path)) == ["a.w"]
    message = f"{tmp_path} is not a file, expected a .safetensors. Pass its path."
    with pytest.raises(CheckpointError, match=full_text(message)):
        file_tensors(tmp_path)


def test_file_of_peft_needs_its_config(tmp_path: Path) -> None:
    """By its name or its keys; any other file next to a config is an adapter by itself."""
    peft, own = tmp_path / "p.safetensors", tmp_path / "o.safetensors"
    save_file({"base_model.model.a.lora_A.weight": ONE}, peft)
    save_file({"lora_unet_a.lora_down.weight": ONE}, own)
    assert has_peft_keys(peft) and not has_peft_keys(own)
    assert has_peft_keys(tmp_path / "adapter_model.bin")
    assert is_adapter_by_itself(peft) and is_adapter_by_itself(own)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not is_adapter_by_itself(peft) and is_adapter_by_itself(own)
    assert not is_adapter_by_itself(tmp_path / "adapter_config.json")
    assert not is_adapter_by_itself(tmp_path)


def test_invalid_json_is_none() -> None:
    """Metadata of other programs need not be JSON; null is a document."""
    assert [parse_json_or_none(text) for text in (None, "", "{", "null", "[1]")] == [
        None, None, None, None, [1],
    ]  # fmt: skip
