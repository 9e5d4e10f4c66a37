"""Updates as plain data: what each family accepts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import CheckpointError
from jaxmix.families import LoRA

from ..peft.folders import packed
from .saved import LORA, Data, edited, first, refused, tensors

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


def test_missing_tensor_is_reported_at_each_site(folder: Path) -> None:
    """A missing tensor is reported at each site that uses it."""
    stored = tensors(folder)
    del stored["0/a/a"]
    (folder / "mix.safetensors").write_bytes(packed(stored))
    message = refused(CheckpointError, folder)
    assert "\n  a: a is the tensor '0/a/a', which is missing\n  b: a is the tensor" in message


def test_invalid_strength_tensors_are_refused(tmp_path: Path) -> None:
    """A strength's tensor that is missing or has a wrong dtype or shape is refused."""
    folder = jaxmix.save(Adapter({"a": LORA}, jnp.float32(0.5)), tmp_path / "x")
    where = f"{folder / 'mix.json'}: part 1: the tensor"
    ending = "expected a strength () of floats. Save the mix again, or put a number in its place."
    for key, description in (("gone", "missing"), ("0/a/a", "(2, 4) of float32")):
        edited(folder, lambda d, key=key: d["parts"][0].update(strength={"tensor": key}))
        assert refused(CheckpointError, folder) == f"{where} {key!r} is {description}, {ending}"
