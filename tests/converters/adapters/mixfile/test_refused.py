"""The exact errors for invalid saved mixes and for mixes that cannot be saved."""

import json
import shutil
from collections.abc import Callable
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
from jaxmix.converters.adapters.mixfile import VERSION, record, writing
from jaxmix.errors import AdapterError, CheckpointError, UnsupportedError
from jaxmix.families import LoKr, LoRA, SHiRA, Together

from ..peft.folders import packed

A, B = np.arange(8.0, dtype=np.float32).reshape(2, 4), np.ones((5, 2))
LORA = LoRA(A, B, 0.5)
MIXED = jaxmix.mix(Adapter({"a": LORA, "b": LORA}, name="x"), Adapter({"a": LORA}, name="y"))
Data = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Saves a mix of two parts."""
    return jaxmix.save(MIXED, tmp_path / "saved")


def refused(kind: type[JaxmixError], path: Path | str) -> str:
    """Returns the error's message; asserts its exact class."""
    with pytest.raises(JaxmixError) as caught:
        jaxmix.load(path)
    assert caught.type is kind
    return str(caught.value)


def edited(folder: Path, change: Callable[[Data], Any]) -> Path:
    """Applies a change to mix.json; returns the folder."""
    data = json.loads((folder / "mix.json").read_text())
    change(data)
    (folder / "mix.json").write_text(json.dumps(data))
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns the folder's tensors."""
    from safetensors.numpy import load_file

    return load_file(folder / "mix.safetensors")


# ----------------------------------------------------------------------------- the head

RECIPE = (
    '\nExpected the file that jaxmix writes, or a recipe: {"format": '
    '"jaxmix", "version": 1, "parts": [{"source": "…", "strength": 1}]}.'
)
DAMAGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is not JSON: Expecting value: line 1 column 1 (char 0). "),
    "no text": (b"\xff{}", "is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: "),
    "cut": (b'{"format": "jaxmix"', "is not JSON: Expecting ',' delimiter: line 1 column 20"),
    "a list": (b"[]", "contains a list, expected a JSON object."),
    "twice": (b'{"a": 1, "b": 2, "a": 1}', "is not JSON: 'a' occurs twice in one object. "),
    "NaN": (
        b'{"a": NaN}',
        "is not JSON: NaN is not a finite number. Expected the file that jaxmix writes; ",
    ),
    "infinite": (b'{"a": [-Infinity]}', "is not JSON: -Infinity is not a finite number. "),
    "deep": (b"[" * 100_000, "is not JSON: "),
    "no mix": (
        b'{"peft_type": "LORA"}',
        "is not a mix of jaxmix: its format is None, expected 'jaxmix'. Pass a "
        "folder that jaxmix wrote, or a recipe.",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_invalid_json_is_refused(name: str, folder: Path) -> None:
    """Invalid JSON, and JSON of another format, are refused."""
    data, expected = DAMAGED[name]
    path = folder / "mix.json"
    path.write_bytes(data)
    assert refused(CheckpointError, folder).startswith(f"{path} {expected}")


def test_unreadable_json_gives_the_system_error(folder: Path) -> None:
    """The error contains the system's reason."""
    (folder / "mix.json").unlink()
    (folder / "mix.json").mkdir()
    assert refused(CheckpointError, folder) == (
        f"{folder / 'mix.json'} can't be read: Is a directory. Expected a file that you may read."
    )


def test_newer_and_invalid_versions_are_refused(folder: Path) -> None:
    """A newer or invalid version is refused regardless of the other fields."""
    path = folder / "mix.json"
    edited(folder, lambda data: data.update(version=VERSION + 1, more=[], parts={}))
    assert refused(UnsupportedError, folder) == (
        f"{path} has version {VERSION + 1}, and this jaxmix reads versions up to "
        f"{VERSION}. Update jaxmix, or save the mix with this version."
    )
    for version in (0, -1, 1.0, "1", None, True, [1]):
        edited(folder, lambda data, version=version: data.update(version=version))
        assert refused(CheckpointError, folder) == (
            f"{path}: version is {version!r}, expected an integer up to {VERSION}. "
            f"Save the mix again."
        )


HASH = "expected 64 hexadecimal digits"
FIELDS: dict[str, tuple[Callable[[Data], Any], list[str]]] = {
    "unknown": (lambda d: d.update(more=1), ["'more' is not a field of a mix"]),
    "kind": (lambda d: d.update(kind=["mix"]), ["kind is ['mix'], expected 'mix' or 'adapter'"]),
    "parts": (lambda d: d.update(parts={}), ["parts is {}, expected a list"]),
    "no parts": (lambda d: d.pop("parts"), ["parts is None, expected a list"]),
    "a part": (lambda d: d["parts"].append(3), ["part 3: it is 3, expected an object"]),
    "a part's field": (
        lambda d: d["parts"][0].update(revision="main"),
        ["part 1: 'revision' is not a field of a part"],
    ),
    "a part's fields": (
        lambda d: [d["parts"][1].pop(key) for key in ("name", "sha256")],
        ["part 2: name is missing", "part 2: sha256 is missing"],
    ),
    "texts": (
        lambda d: d["parts"][0].update(name=None, source=7),
        ["part 1: name is None, expected a string", "part 1: source is 7, expected a string"],
    ),
    "strength": (
        lambda d: [p.update(strength=s) for p, s in zip(d["parts"], (True, 10**400), strict=True)],
        [
            "part 1: strength is True, expected a finite number",
            f"part 2: strength is {str(10**400)[:57]}…, expected a finite number",
        ],
    ),
    "infinite": (
        lambda d: [p.update(strength=s) for p, s in zip(d["parts"], ({}, "1"), strict=True)],
        [
            "part 1: strength is {}, expected a finite number",
            "part 2: strength is '1', expected a finite number",
        ],
    ),
    "hash": (
        lambda d: d["parts"][0].update(sha256="A" * 64),
        [f"part 1: sha256 is '{'A' * 56}…, {HASH}"],
    ),
    "no hash": (lambda d: d["parts"][0].update(sha256=1), [f"part 1: sha256 is 1, {HASH}"]),
    "of a recipe": (
        lambda d: d.update(parts=[{"source": "", "strength": {"tensor": "x"}, "name": ""}, {}]),
        [
            "part 1: source is '', expected a string",
            "part 1: name is '', expected a string",
            "part 1: strength is {'tensor': 'x'}, expected a finite number",
            "part 2: source is missing",
        ],
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_invalid_fields_are_listed(name: str, folder: Path) -> None:
    """Unknown, missing and invalid fields are listed in one error."""
    change, lines = FIELDS[name]
    message = refused(CheckpointError, edited(folder, change))
    listed = "".join(f"\n  {line}" for line in sorted(lines))
    head, *found_lines = message.removesuffix(RECIPE).split("\n  ")
    assert head == f"{folder / 'mix.json'}: not a valid mix:" and message.endswith(RECIPE)
    assert "".join(f"\n  {line}" for line in sorted(found_lines)) == listed


def test_number_beyond_floats_is_refused(folder: Path) -> None:
    """JSON reads such a number as infinity."""
    text = (folder / "mix.json").read_text()
    for field in ('"strength": 1.0', '"scale": 0.5'):
        changed = field.split(":")[0] + ": -1e999"
        (folder / "mix.json").write_text(text.replace(field, changed, 1))
        assert "is not JSON: -1e999 is not a finite number." in refused(CheckpointError, folder)


# ------------------------------------------------------------------------------- updates


def first(data: Data) -> Data:
    """Returns the first update of the first part."""
    return data["parts"][0]["updates"]["a"]


def nested(depth: int) -> Any:
    """Returns Together updates nested `depth` levels deep."""
    inner: Any = {"family": "Together", "parts": []}
    for _ in range(depth):
        inner = {"family": "Together", "parts": [inner]}
    return inner


UPDATES: dict[str, tuple[Callable[[Data], Any], str]] = {
    "family": (lambda d: first(d).update(family="Nope"), "a: the family 'Nope' is unknown"),
    "no family": (lambda d: first(d).pop("family"), "a: the family None is unknown"),
    "a family": (lambda d: first(d).update(family=["LoRA"]), "a: the family ['LoRA'] is unknown"),
    "unknown": (lambda d: first(d).update(rank=2, r=3), "a: LoRA has no field 'rank', 'r'"),
    "missing": (lambda d: [first(d).pop(k) for k in ("b", "scale")], "a: LoRA needs b, scale"),
    "an array for a number": (
        lambda d: first(d).update(scale={"tensor": "0/a/b"}),
        "a: scale is an array (5, 2) of float64, expected an array () of Float or a number",
    ),
    "a number for an array": (
        lambda d: first(d).update(a=3),
        "a: a is 3, expected an array (r, in) of Float",
    ),
    "a flag": (
        lambda d: first(d).update(transposed=1),
        "a: transposed is 1, expected true or false or nothing",
    ),
    "a tuple": (
        lambda d: first(d).update(kernel=[3, "x"]),
        "a: kernel is (3, 'x'), expected a tuple of integers",
    ),
    "a tensor": (
        lambda d: first(d).update(a={"tensor": "gone"}),
        "a: a is the tensor 'gone', which is missing",
    ),
    "an object": (lambda d: first(d).update(kernel={"x": 1}), "a: the family None is unknown"),
    "no tensor": (lambda d: first(d).update(a={"tensor": 1}), "a: the family None is unknown"),
    "no update": (lambda d: d["parts"][0]["updates"].update(a=3), "a: 3 is not an update"),
    "inner": (
        lambda d: d["parts"][0]["updates"].update(
            a={"family": "Together", "parts": [first(d), {"family": "LoRA"}]}
        ),
        "a: LoRA needs parts.1.a, parts.1.b, parts.1.scale",
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_invalid_update_is_refused(name: str, folder: Path) -> None:
    """The error names the field that makes an update invalid."""
    change, line = UPDATES[name]
    message = refused(CheckpointError, edited(folder, change))
    assert message == (
        f"{folder / 'mix.json'}: part 1: invalid updates:\n  {line}\nWas it edited, "
        f"or written by another version? Save the mix again, or update jaxmix."
    )


def test_invalid_updates_are_listed(folder: Path) -> None:
    """The error has a line for each invalid update."""

    def change(data: Data) -> None:
        for update in data["parts"][0]["updates"].values():
            del update["a"]

    assert "\n  a: LoRA needs a\n  b: LoRA needs a\n" in refused(
        CheckpointError, edited(folder, change)
    )


def test_updates_must_be_an_object(folder: Path) -> None:
    """A list has no sites."""
    edited(folder, lambda data: data["parts"][0].update(updates=[1]))
    assert refused(CheckpointError, folder) == (
        f"{folder / 'mix.json'}: part 1: updates are [1], expected {{site: update}}."
    )


def test_constructor_error_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that a family's constructor raises is reported as a JaxmixError."""

    def look(self: Any, **fields: Any) -> None:
        raise ValueError("it is odd")

    monkeypatch.setattr(LoRA, "__init__", look)
    assert "\n  a: LoRA: it is odd\n" in refused(CheckpointError, folder)


# ------------------------------------------------------------------------------- tensors


def test_missing_tensors_file_is_refused(folder: Path) -> None:
    """The tensors file is required next to mix.json."""
    (folder / "mix.safetensors").unlink()
    assert refused(CheckpointError, folder) == (
        f"{folder} has no mix.safetensors, expected next to mix.json, whose parts "
        f"have their arrays in it. Copy, download or save it again."
    )


def test_damaged_tensors_file_is_refused(folder: Path) -> None:
    """A truncated, extended or empty file and a folder are refused."""
    path = folder / "mix.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-1], data[:20], b"", data + b"x"):
        path.write_bytes(damaged)
        message = refused(CheckpointError, folder)
        assert message.startswith(f"{path} is not a complete safetensors file: ")
        assert message.endswith(
            " Expected the file that jaxmix wrote; copy, download or save it again."
        )
    path.unlink()
    path.mkdir()
    message = refused(CheckpointError, folder)
    assert message.startswith(f"{path} is a folder, expected a regular file.")


def test_unused_tensors_are_listed(folder: Path) -> None:
    """Tensors that no part uses are listed."""
    path = folder / "mix.safetensors"
    path.write_bytes(packed({**tensors(folder), "zz": A, "0/more": B}))
    assert refused(CheckpointError, folder) == (
        f"{path} has tensors that no part uses:\n  0/more\n  zz\nExpected only the "
        f"tensors of mix.json. Save the mix again."
    )


def test_missing_tensor_is_reported_at_each_site(folder: Path) -> None:
    """A missing tensor is reported at each site that uses it."""
    stored = tensors(folder)
    del stored["0/a/a"]
    (folder / "mix.safetensors").write_bytes(packed(stored))
    message = refused(CheckpointError, folder)
    assert "\n  a: a is the tensor '0/a/a', which is missing\n  b: a is the tensor" in message


def test_changed_tensors_are_refused(folder: Path) -> None:
    """A changed value, shape or dtype fails the hash; other axes make the update invalid."""
    path, stored = folder / "mix.safetensors", tensors(folder)
    changes = {
        "value": A + 1,
        "sign of zero": np.where(A == 0, -A, A),
        "shape": A.reshape(4, 2),
        "dtype": A.astype(np.float64),
        "bits": A.astype(ml_dtypes.bfloat16),
    }
    for changed in changes.values():
        path.write_bytes(packed({**stored, "0/a/a": changed}))
        message = refused(CheckpointError, folder)
        assert message.startswith(
            f"{folder / 'mix.json'}: parts whose hash (SHA-256 of their updates) "
            f"differs from the one in the file:\n  part 1, x: "
        )
        assert "\n  part 2, y: " in message and message.endswith(" by the new one.")
    for changed, description in (
        (A[None], "(1, 2, 4) of float32"),
        (A.astype(np.int32), "(2, 4) of int32"),
    ):
        path.write_bytes(packed({**stored, "0/a/a": changed}))
        line = f"\n  a: a is an array {description}, expected an array (r, in) of Float\n"
        assert line in refused(CheckpointError, folder)


def test_unsupported_dtypes_are_listed(folder: Path) -> None:
    """Tensors of unsupported dtypes are listed before any is read."""
    path = folder / "mix.safetensors"
    path.write_bytes(packed({**tensors(folder), "0/a/a": A.astype(ml_dtypes.float8_e4m3fn)}))
    assert refused(CheckpointError, folder) == (
        f"{path}: tensors of a dtype that updates can't have:\n  0/a/a: "
        f"F8_E4M3\nExpected one of F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, "
        f"U16, U8, BOOL, C64. Save the mix again."
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_non_finite_tensors_are_refused(dtype: Any, folder: Path) -> None:
    """NaN and infinity are refused, as in every adapter file."""
    factor = A.astype(dtype)
    factor[0, :2] = np.nan, np.inf
    path = folder / "mix.safetensors"
    path.write_bytes(packed({**tensors(folder), "0/a/a": factor}))
    assert refused(AdapterError, folder) == (
        f"{path}: numbers that are NaN or infinite in:\n  0/a/a: 2 of 8\nExpected finite factors, "
        "as jaxmix writes them."
    )


def test_invalid_strength_tensors_are_refused(tmp_path: Path) -> None:
    """A strength's tensor that is missing or has a wrong dtype or shape is refused."""
    folder = jaxmix.save(Adapter({"a": LORA}, jnp.float32(0.5)), tmp_path / "x")
    where = f"{folder / 'mix.json'}: part 1: the tensor"
    ending = "expected a strength () of floats. Save the mix again, or put a number in its place."
    for key, description in (("gone", "missing"), ("0/a/a", "(2, 4) of float32")):
        edited(folder, lambda d, key=key: d["parts"][0].update(strength={"tensor": key}))
        assert refused(CheckpointError, folder) == f"{where} {key!r} is {description}, {ending}"


def test_wrong_hash_names_the_part(folder: Path) -> None:
    """A wrong hash, or a changed field, is reported for that part only."""
    edited(folder, lambda data: data["parts"][1].update(sha256="0" * 64))
    message = refused(CheckpointError, folder)
    assert "\n  part 2, y: " in message and "part 1" not in message
    jaxmix.save(MIXED, folder, force=True)
    edited(folder, lambda data: first(data).update(scale=0.25))
    message = refused(CheckpointError, folder)
    assert "\n  part 1, x: " in message and "part 2" not in message


# -------------------------------------------------------------------------------- saving


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


# --------------------------------------------------------------------------------- places


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


def test_saved_mix_is_recognised_by_content(folder: Path) -> None:
    """A saved mix is recognised by its content, not by its name."""
    assert record.is_ours(folder / "mix.json") and not record.is_ours(folder / "mix.safetensors")
