"""Saving a mix: what can be written, and where."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, JaxmixError, Mix
from jaxmix.converters.adapters.mixfile import writing
from jaxmix.errors import AdapterError, CheckpointError
from jaxmix.families import LoKr, LoRA, SHiRA, Together

from .saved import LORA, MIXED, A, B


def unsaved(kind: type[JaxmixError], mixed: Any, folder: Path, **options: Any) -> str:
    """Returns the message with which saving fails; asserts that nothing is left behind."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(JaxmixError) as caught:
        jaxmix.save(mixed, folder, **options)
    assert caught.type is kind and sorted(folder.parent.rglob("*")) == before
    return str(caught.value)


def test_save_rejects_a_list(tmp_path: Path) -> None:
    """A list of adapters is not a mix."""
    assert unsaved(AdapterError, [MIXED], tmp_path / "x") == (
        "save got a list, expected an adapter or a mix. Write save(mix(a, b), folder)."
    )


def test_save_rejects_duplicate_names(tmp_path: Path) -> None:
    """A mix built by hand may have duplicate names, but cannot be saved."""
    adapter = Adapter({"a": LORA}, name="x")
    message = unsaved(AdapterError, Mix((adapter, adapter)), tmp_path / "x")
    assert message.startswith("two adapters of a mix have the name 'x'.")


class Other(LoRA):
    """A family defined outside jaxmix."""


BAD = np.array([[np.nan, 1.0], [np.inf, 1.0]])


UNWRITTEN: dict[str, tuple[Any, str]] = {
    "nan": (replace(LORA, a=BAD), "a has 2 of 4 numbers that are NaN or infinite"),
    "bf16": (
        replace(LORA, a=BAD.astype(ml_dtypes.bfloat16)),
        "a has 2 of 4 numbers that are NaN or infinite",
    ),
    "inner": (
        Together((LORA, LoKr((A,), (B, BAD), 1.0))),
        "parts.1.y.1 has 2 of 4 numbers that are NaN or infinite",
    ),
    "f8": (replace(LORA, a=A.astype(ml_dtypes.float8_e4m3fn)), "a is an array of float8_e4m3fn"),
    "axes": (
        replace(LORA, a=A[None]),
        "a is an array (1, 2, 4) of float32, expected an array (r, in) of Float",
    ),
    "whole": (
        SHiRA(A[0], A[:2]),
        "indices is an array (2, 4) of float32, expected an array (2, n) of Int",
    ),
    "list": (
        replace(LORA, kernel=[3]),
        "kernel is [3], expected a tuple of integers",
    ),
    "family": (Other(A, B, 1.0), "it is a Other, which is not a family of jaxmix"),
    "inner family": (
        Together((Other(A, B, 1.0),)),
        "parts.0 is a Other, which is not a family of jaxmix",
    ),
}


@pytest.mark.parametrize("name", UNWRITTEN)
def test_unwritable_updates_are_listed(name: str, tmp_path: Path) -> None:
    """The error lists each site and field that cannot be written."""
    update, expected = UNWRITTEN[name]
    mixed = Adapter({"s": update, "good": LORA, "t": update}, name="style")
    message = unsaved(AdapterError, mixed, tmp_path / "x")
    assert message.startswith(f"style: updates that can't be written:\n  s: {expected}")
    assert f"\n  t: {expected}" in message and "good" not in message
    assert message.endswith(
        "\nExpected updates of the families in jaxmix.families, with finite numbers; save outside "
        "of jax.jit."
    )


def test_traced_arrays_are_refused(tmp_path: Path) -> None:
    """Traced arrays have no values to save."""
    messages = []

    @jax.jit
    def run(adapter: Adapter) -> Any:
        for item in (adapter, Adapter({}, adapter.strength)):
            messages.append(unsaved(AdapterError, item, tmp_path / "x"))
        return adapter.strength

    run(Adapter({"a": LORA}, jnp.float32(1), "style"))
    assert "\n  a: a is traced\n" in messages[0] or "a strength is" in messages[0]
    assert messages[1].endswith(
        ", expected a number. Save outside of jax.jit and jax.vmap."
    ) and messages[1].startswith("a strength is ")
    only = jax.jit(lambda update: unsaved(AdapterError, Adapter({"a": update}), tmp_path / "x"))
    with pytest.raises(TypeError, match="is not a valid JAX type"):
        only(
            LORA
        )  # the function returns a string, which JAX rejects: jaxmix's error was raised before


def test_deleted_arrays_are_refused(tmp_path: Path) -> None:
    """A donated buffer has no values to save."""
    gone = jnp.ones((2, 4))
    gone.delete()
    message = unsaved(AdapterError, Adapter({"a": replace(LORA, a=gone)}, name="x"), tmp_path / "x")
    assert "\n  a: a can't be read: Array has been deleted" in message


def test_names_with_surrogates_are_refused(tmp_path: Path) -> None:
    """A lone surrogate cannot be encoded."""
    for bad in (
        Adapter({"a": LORA}, name="x\ud800"),
        Adapter({"a": LORA}, source="x\ud800"),
        Adapter({"x\ud800": LORA}),
    ):
        assert unsaved(AdapterError, bad, tmp_path / "x") == (
            "a name, source or site contains '\\ud800', which can't be written to a "
            "file. Rename it."
        )


def test_existing_output_needs_force(folder: Path, tmp_path: Path) -> None:
    """Nothing is replaced without `force`; with it, only a saved mix is replaced."""
    adapter = Adapter({"a": LORA}, name="other")
    assert unsaved(CheckpointError, adapter, folder) == (
        f"the output {folder} exists. Choose another folder, or use force=True to replace "
        "it once the new one is complete."
    )
    assert jaxmix.save(adapter, folder, force=True) == folder
    assert jaxmix.load(folder).name == "other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]
    (tmp_path / "empty").mkdir()
    jaxmix.save(adapter, tmp_path / "empty", force=True)
    shutil.copytree(tmp_path / "empty", tmp_path / "new" / "deep")
    jaxmix.save(adapter, tmp_path / "other" / "deep")
    (tmp_path / "file").write_text("x")
    assert unsaved(CheckpointError, adapter, tmp_path / "file") == (
        f"the output {tmp_path / 'file'} is a file. Choose the path of a folder."
    )


def test_folder_with_other_files_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    """A folder with other files is not replaced, also if it has a mix among them."""
    adapter = Adapter({"a": LORA})
    (folder / "lora").mkdir()
    (folder / "README.md").write_text("x")
    message = unsaved(CheckpointError, adapter, folder, force=True)
    assert message == (
        f"the output {folder} can't be replaced, since it also holds other files:\n"
        "  README.md\n  lora/\nMove these files, or choose another folder."
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes").write_text("x")
    message = unsaved(CheckpointError, adapter, tmp_path / "home", force=True)
    assert message.startswith(
        f"the output {tmp_path / 'home'} exists and is not a checkpoint: it has none of mix.json."
    )
    assert message.endswith("Choose another folder, or empty this one.")
    (tmp_path / "home" / "notes").rename(tmp_path / "home" / "mix.json")
    message = unsaved(CheckpointError, adapter, tmp_path / "home", force=True)
    assert message == (
        f"the output {tmp_path / 'home'} is not replaced, since jaxmix did not "
        f"write its mix.json. Choose another folder, or move it."
    )


def test_failed_write_keeps_the_old_mix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write keeps the previous mix and leaves no other file."""

    def fail(path: Path, arrays: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write", fail)
    message = unsaved(CheckpointError, Adapter({"a": LORA}), folder, force=True)
    assert "could not be written: [Errno 28] No space left on device." in message
    assert message.endswith("Free some space, or choose another disk.")
    assert len(jaxmix.load(folder).parts) == 2
